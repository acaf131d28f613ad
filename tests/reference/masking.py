"""A slow twin of cutting: components that a plan removes stay in the tensors, where a mask multiplies them by zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from peftprune.adapters import surgery
from peftprune.adapters.plan_check import Change, resolve_plan
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import LiveTensors, Site, SiteSet

_cut, _multiply, _fold = surgery.apply_plan, surgery.set_multipliers, surgery.fold
DIMENSIONS = {"A": 0, "B": 1, "gate": 0}


class MaskedSite(Site):
    """Shows only the components that its mask leaves."""

    @property
    def alive(self) -> Tensor:
        whole = torch.arange(self._lora_A.weight.shape[0])
        return whole[self._lora_A.rank_mask > 0] if self.is_masked else whole

    @property
    def is_masked(self) -> bool:
        return not Site.is_dropped.fget(self) and getattr(self._lora_A, "rank_mask", None) is not None

    @property
    def is_dropped(self) -> bool:
        return Site.is_dropped.fget(self) or (self.is_masked and len(self.alive) == 0)

    def _masked(self, name: str, tensor: Tensor | None) -> Any:
        whole = tensor is None or not self.is_masked or (name == "gate" and not self._lora_A.gate_per_rank)
        return tensor if whole else tensor.index_select(DIMENSIONS[name], self.alive)

    rank = property(lambda self: 0 if self.is_dropped else len(self.alive))
    A = property(lambda self: self._masked("A", Site.A.fget(self)))
    B = property(lambda self: self._masked("B", Site.B.fget(self)))
    gate = property(lambda self: self._masked("gate", Site.gate.fget(self)))
    grad_A = property(lambda self: self._masked("A", Site.grad_A.fget(self)))  # noqa: N815
    grad_B = property(lambda self: self._masked("B", Site.grad_B.fget(self)))  # noqa: N815
    grad_gate = property(lambda self: self._masked("gate", Site.grad_gate.fget(self)))

    def live(self) -> LiveTensors:
        return LiveTensors(**{name: self._masked(name, tensor) for name, tensor in vars(super().live()).items()})

    def parameters(self) -> Any:
        return [tensor for tensor in vars(super().live()).values() if tensor is not None]


def masked(sites: SiteSet) -> SiteSet:
    """The same sites, under masks."""
    return SiteSet({n: MaskedSite(s.shape, s._layer, s._adapter) for n, s in sites.items()}, sites.peft_config)


def mask_plan(sites: SiteSet, plan: PruningPlan, **_: Any) -> list[Change]:
    """Apply a plan by masking; skips the test where tensors would get new shapes."""
    changes = resolve_plan(sites, plan)
    for change in changes:
        site: Any = sites[change.sites[0]]
        if change.kind in ("drop", "keep"):
            left = site.alive[list(change.value or ())]
            mask = torch.zeros(site._lora_A.weight.shape[0]).index_fill_(0, left, 1.0)
            if not site.is_masked:
                site._lora_A.register_forward_hook(
                    lambda module, _, output: output if module.rank_mask is None else output * module.rank_mask
                )
            site._lora_A.rank_mask = mask
        elif change.kind in ("assign", "zero"):
            for name, part in change.value.items():
                param = getattr(Site.live(site), name).detach()
                alive = torch.arange(1) if param.numel() == 1 else site.alive
                if change.kind == "assign":
                    param.index_copy_(DIMENSIONS[name], alive, part)
                else:
                    assert plan.moments == "keep"
                    whole = torch.zeros_like(param, dtype=torch.bool).index_copy_(DIMENSIONS[name], alive, part)
                    param.masked_fill_(whole, 0.0)
        else:
            pytest.skip(f"{change.kind} changes what masks cannot")
    return changes


def set_multipliers(sites: SiteSet, multipliers: Mapping[str, Tensor] | None) -> None:
    """`surgery.set_multipliers` of the components that are left."""
    whole = {}
    for name, value in (multipliers or {}).items():
        site: Any = sites[name]
        whole[name] = torch.zeros(site._lora_A.weight.shape[0], dtype=value.dtype).index_copy_(0, site.alive, value)
    _multiply(sites, None if multipliers is None else whole)


def compact(sites: SiteSet, optimizer: Optimizer | None = None) -> None:
    """Cut out what the masks removed."""
    left = {n: s.alive.tolist() for n, s in sites.items() if s.is_masked}
    for name in left:
        sites[name]._lora_A.rank_mask = None
    plain = SiteSet({n: Site(s.shape, s._layer, s._adapter) for n, s in sites.items()}, sites.peft_config)
    _cut(plain, PruningPlan(keep=left), optimizer=optimizer)


def fold(sites: SiteSet) -> None:
    """`surgery.fold` of what the masks leave."""
    compact(sites)
    _fold(sites)
