"""The only code that changes adapter tensors: it applies plans, ties, masks, compacts and folds.

Parameters keep their identity: a cut slices `param.data`, its gradient and the optimizer's state in place, so that
optimizers, hooks and compiled graphs that hold the Parameter go on working. PEFT's own book-keeping (`r`,
`lora_alpha`, `scaling`, feature counts, `rank_pattern`, `alpha_pattern`) stays true after every call.

Call these functions only where no graph is alive (after `zero_grad`): shapes may change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from peftprune.adapters.initial import init_lora_A
from peftprune.adapters.plan_check import check_plan
from peftprune.errors import RunError
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteSet


def apply_plan(
    sites: SiteSet,
    plan: PruningPlan,
    *,
    optimizer: Optimizer | None = None,
    rng: torch.Generator | None = None,
    physical: bool = True,
) -> None:
    """Apply one plan.

    Args:
        sites: the sites of the model.
        plan: what to do; indices and masks refer to what `Site` shows.
        optimizer: its state is cut along; None outside training.
        rng: draws the new rows of A for `grow` and `reinit`.
        physical: False masks removed components instead of cutting them, so that shapes stay;
            `compact` cuts them later.

    Raises:
        RunError: when the plan names an unknown or dropped site, or does not fit the tensors; nothing was changed.
    """
    check_plan(sites, plan, rng)
    for name in plan.drop:
        _drop(sites, sites[name], optimizer, physical)
    for site, indices in _once_per_group(sites, plan.keep):
        if len(indices) == 0:
            for member in _group_of(sites, site):
                _drop(sites, member, optimizer, physical)
        else:
            _keep(sites, site, indices, optimizer, physical)
    for site, rank in _once_per_group(sites, plan.reinit):
        _reinit(sites, site, rank, optimizer, rng)
    for group in plan.share:
        _share(sites, [sites[name] for name in group], optimizer)
    for site, extra in _once_per_group(sites, plan.grow):
        _grow(sites, site, extra, optimizer, rng)
    for site, values in _once_per_group(sites, plan.assign):
        for tensor_name, value in values.items():
            _write(site, tensor_name, value)
    for site, masks in _once_per_group(sites, plan.zero):
        for tensor_name, mask in masks.items():
            _zero(site, tensor_name, mask, optimizer if plan.moments == "zero" else None)
    if plan.reset_optimizer and optimizer is not None:
        optimizer.state.clear()
    sync_config(sites)


def add_gates(sites: SiteSet, kind: str, value: float) -> None:
    """Put a trainable gate between A and B of every site: (rank,) for `kind="rank"`, (1,) for `kind="site"`."""
    for site in sites.values():
        size = site.rank if kind == "rank" else 1
        site._lora_A.rank_gate = nn.Parameter(torch.full((size,), float(value), device=site.A.device))
        site._lora_A.gate_per_rank = kind == "rank"
        _hook_ranks(site._lora_A)


def freeze(sites: SiteSet, tensors: Sequence[str]) -> None:
    """Leave A, B or both as they start, at every site."""
    for group in sites.groups():
        for name in tensors:
            _parameter(group[0], name)[0].requires_grad_(False)


def set_multipliers(sites: SiteSet, multipliers: dict[str, Tensor] | None) -> None:
    """Fix a (rank,) multiplier on each named site's components until the next call; None removes them all."""
    for name, site in sites.items():
        if site.is_dropped:
            continue
        value = None if multipliers is None else multipliers.get(name)
        if value is None and not hasattr(site._lora_A, "rank_multiplier"):
            continue
        active = site._active
        if value is not None and active is not None:
            full = torch.zeros(site._lora_A.weight.shape[0], device=value.device, dtype=value.dtype)
            value = full.index_copy(0, active, value)
        site._lora_A.rank_multiplier = value
        _hook_ranks(site._lora_A)


def compact(sites: SiteSet, optimizer: Optimizer | None = None) -> None:
    """Cut out what masks removed."""
    for site in sites.values():
        if not site.is_dropped and site.rank == 0:
            _drop(sites, site, optimizer, physical=True)
    for group in sites.groups():
        if group[0]._active is not None:
            _keep(sites, group[0], range(group[0].rank), optimizer, physical=True)
    sync_config(sites)


@torch.no_grad()
def fold(sites: SiteSet) -> None:
    """Fold gates and scaling into B once: the function stays, every scale becomes 1 and no gate is left."""
    compact(sites)
    for group in sites.groups():
        first = group[0]
        weight = first._lora_B.weight
        gate = first._gate_parameter
        weight.mul_(first.scaling if gate is None else gate * first.scaling)
        for site in group:
            if gate is not None:
                site._lora_A.rank_gate = None
            site._layer.scaling[site._adapter] = 1.0
            _sync_layer(site, first.rank)
    sync_config(sites)


def structure(sites: SiteSet) -> dict[str, Any]:
    """Ranks and ties as plain values, enough for `restore_structure`."""
    return {"ranks": sites.ranks, "ties": [[s.name for s in g] for g in sites.groups() if len(g) > 1]}


def restore_structure(sites: SiteSet, saved: dict[str, Any]) -> None:
    """Resize, tie and drop sites to a saved structure. Values are not restored: load the weights afterwards."""
    for name, rank in saved["ranks"].items():
        site = sites[name]
        if rank == 0:
            _drop(sites, site, None, physical=True)
            continue
        if site.is_dropped:
            _restore(sites, site, rank, None)
        for param, dim in _tensors(site):
            shape = list(param.shape)
            shape[dim] = rank
            param.data = param.data.new_zeros(shape)
        _sync_layer(site, rank)
    for group in saved["ties"]:
        _share(sites, [sites[name] for name in group], None)
    sync_config(sites)


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state cannot be cut along with its parameters, by one step on a scrap tensor.

    Raises:
        RunError: when a state tensor is neither a scalar nor shaped like the parameter (Adafactor, 8-bit optimizers).
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    scrap = nn.Parameter(torch.ones(3, 5, device=inner.param_groups[0]["params"][0].device))
    scrap.grad = torch.ones_like(scrap)
    settings = {k: v for k, v in inner.param_groups[0].items() if k in inner.defaults}
    probe = type(inner)([{"params": [scrap], **settings}])
    probe.step()
    for key, value in probe.state[scrap].items():
        if isinstance(value, Tensor) and value.numel() > 1 and value.shape != scrap.shape:
            raise RunError(
                f"optimizer: {type(inner).__name__} keeps {key!r} of shape {tuple(value.shape)} for a (3, 5) "
                "parameter, which cannot be cut when ranks change. Use AdamW or SGD"
            )


def _group_of(sites: SiteSet, site: Site) -> list[Site]:
    return next(group for group in sites.groups() if site in group)


def _once_per_group(sites: SiteSet, part: Any) -> list[tuple[Site, Any]]:
    """The plan's entries, with tied sites named once: what changes one changes all."""
    seen: set[int] = set()
    entries = []
    for name, value in part.items():
        site = sites[name]
        key = id(site) if site.is_dropped else id(site._lora_A.weight)
        if key not in seen:
            seen.add(key)
            entries.append((site, value))
    return entries


def _tensors(site: Site) -> list[tuple[nn.Parameter, int]]:
    """The site's parameters with the dimension that counts ranks."""
    found = [(site._lora_A.weight, 0), (site._lora_B.weight, 1)]
    gate = site._gate_parameter
    if gate is not None and site._lora_A.gate_per_rank:
        found.append((gate, 0))
    return found


def _all_tensors(site: Site) -> list[nn.Parameter]:
    """The site's parameters."""
    return [p for p in (site._lora_A.weight, site._lora_B.weight, site._gate_parameter) if p is not None]


@torch.no_grad()
def _resize(param: nn.Parameter, dim: int, change: Any, optimizer: Optimizer | None) -> None:
    """Run `change(tensor, dim)` on the parameter, its gradient and its optimizer state."""
    old = param.shape
    param.data = change(param.data, dim)
    if param.grad is not None:
        param.grad = change(param.grad, dim)
    state: dict[str, Any] = optimizer.state.get(param, {}) if optimizer is not None else {}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old:
            state[key] = change(value, dim)


def _keep(sites: SiteSet, site: Site, indices: Sequence[int], optimizer: Optimizer | None, physical: bool) -> None:
    index = torch.as_tensor(list(indices), dtype=torch.long, device=site._lora_A.weight.device)
    active = site._active
    if active is not None:
        index = active[index]
    group = _group_of(sites, site)
    if not physical:
        mask = torch.zeros(site._lora_A.weight.shape[0], device=index.device).index_fill_(0, index, 1.0)
        for member in group:
            member._lora_A.rank_mask = mask
            _hook_ranks(member._lora_A)
        return
    for param, dim in _tensors(site):
        _resize(param, dim, lambda t, d: t.index_select(d, index).contiguous(), optimizer)
    for member in group:
        member._lora_A.rank_mask = None
        _sync_layer(member, len(index))


def _grow(sites: SiteSet, site: Site, extra: int, optimizer: Optimizer | None, rng: torch.Generator | None) -> None:
    group = _group_of(sites, site)
    rows = init_lora_A(extra, site.d_in, _needed(rng, "grow"))

    def pad(tensor: Tensor, dim: int) -> Tensor:
        shape = list(tensor.shape)
        shape[dim] = extra
        return torch.cat([tensor, tensor.new_zeros(shape)], dim)

    for param, dim in _tensors(site):
        _resize(param, dim, pad, optimizer)
    site._lora_A.weight.data[-extra:] = rows.to(site._lora_A.weight)
    gate = site._gate_parameter
    if gate is not None and site._lora_A.gate_per_rank:
        gate.data[-extra:] = 1.0
    for member in group:
        mask = getattr(member._lora_A, "rank_mask", None)
        if mask is not None:
            member._lora_A.rank_mask = torch.cat([mask, mask.new_ones(extra)])
        _sync_layer(member, site._lora_A.weight.shape[0])


def _reinit(sites: SiteSet, site: Site, rank: int, optimizer: Optimizer | None, rng: torch.Generator | None) -> None:
    rows = init_lora_A(rank, site.d_in, _needed(rng, "reinit"))
    if site.is_dropped:
        _restore(sites, site, rank, optimizer)
    group = _group_of(sites, site)
    for param, dim in _tensors(site):
        if optimizer is not None:
            optimizer.state.pop(param, None)
        param.grad = None
        shape = list(param.shape)
        shape[dim] = rank
        param.data = param.data.new_zeros(shape)
    site._lora_A.weight.data.copy_(rows)
    gate = site._gate_parameter
    if gate is not None:
        gate.data.fill_(1.0)
    for member in group:
        member._lora_A.rank_mask = None
        _sync_layer(member, rank)


def _restore(sites: SiteSet, site: Site, rank: int, optimizer: Optimizer | None) -> None:
    """Give a dropped site its modules back and its parameters a place in the optimizer."""
    like = next(iter(sites.groups()), [None])[0]
    if like is None or like._gate_parameter is not None:
        raise RunError(f"plan.reinit[{site.name!r}]: a dropped site cannot return where no site is left, or to gates")
    device, dtype = like._lora_A.weight.device, like._lora_A.weight.dtype
    layer, adapter = site._layer, site._adapter
    layer.lora_A[adapter] = nn.Linear(site.d_in, rank, bias=False, device=device, dtype=dtype)
    layer.lora_B[adapter] = nn.Linear(rank, site.d_out, bias=False, device=device, dtype=dtype)
    enable_resizing_load(site)
    for new, known in ((site._lora_A, like._lora_A), (site._lora_B, like._lora_B)):
        new.weight.requires_grad_(known.weight.requires_grad)
        if optimizer is not None and known.weight.requires_grad:
            home = next(g for g in optimizer.param_groups if any(p is known.weight for p in g["params"]))
            home["params"].append(new.weight)


def _drop(sites: SiteSet, site: Site, optimizer: Optimizer | None, physical: bool) -> None:
    if site.is_dropped:
        return
    if not physical:
        site._lora_A.rank_mask = torch.zeros(site._lora_A.weight.shape[0], device=site._lora_A.weight.device)
        _hook_ranks(site._lora_A)
        return
    layer, adapter = site._layer, site._adapter
    params = _all_tensors(site)
    # PEFT's forward skips a layer whose lora_A lacks the adapter, so a dropped site costs nothing.
    del layer.lora_A[adapter], layer.lora_B[adapter]
    layer.r[adapter] = 0
    _forget(sites, params, optimizer)


def _share(sites: SiteSet, group: list[Site], optimizer: Optimizer | None) -> None:
    first, *others = group
    for site in others:
        if site._lora_A.weight is first._lora_A.weight:
            continue
        old = _all_tensors(site)
        site._lora_A.weight = first._lora_A.weight
        site._lora_B.weight = first._lora_B.weight
        if first._gate_parameter is not None:
            site._lora_A.rank_gate = first._gate_parameter
        site._lora_A.rank_mask = getattr(first._lora_A, "rank_mask", None)
        _hook_ranks(site._lora_A)
        site._layer.scaling[site._adapter] = first.scaling
        _sync_layer(site, first._lora_A.weight.shape[0])
        _forget(sites, old, optimizer)


def _forget(sites: SiteSet, params: list[nn.Parameter], optimizer: Optimizer | None) -> None:
    """Take those of the parameters that no site holds any more out of the optimizer."""
    if optimizer is None:
        return
    used = {id(p) for s in sites.values() if not s.is_dropped for p in _all_tensors(s)}
    params = [p for p in params if id(p) not in used]
    dead = {id(p) for p in params}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in dead]
    for param in params:
        optimizer.state.pop(param, None)


def _parameter(site: Site, tensor_name: str) -> tuple[nn.Parameter, int]:
    if tensor_name == "A":
        return site._lora_A.weight, 0
    if tensor_name == "B":
        return site._lora_B.weight, 1
    gate = site._gate_parameter
    assert gate is not None
    return gate, 0


@torch.no_grad()
def _write(site: Site, tensor_name: str, value: Tensor) -> None:
    param, dim = _parameter(site, tensor_name)
    active = site._active
    if active is None or param.shape[dim] == 1:
        param.copy_(value)
    else:
        param.index_copy_(dim, active, value.to(param))


@torch.no_grad()
def _zero(site: Site, tensor_name: str, mask: Tensor, optimizer: Optimizer | None) -> None:
    param, dim = _parameter(site, tensor_name)
    active = site._active
    if active is not None and param.shape[dim] > 1:
        mask = torch.zeros_like(param, dtype=torch.bool).index_copy_(dim, active, mask)
    param.masked_fill_(mask, 0.0)
    state = optimizer.state.get(param, {}) if optimizer is not None else {}
    for value in state.values():
        if isinstance(value, Tensor) and value.shape == param.shape:
            value.masked_fill_(mask, 0.0)


def _needed(rng: torch.Generator | None, what: str) -> torch.Generator:
    if rng is None:
        raise RunError(f"plan.{what} draws new rows of A and needs a generator. Pass rng to apply_plan")
    return rng


def _scale_ranks(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for name in ("rank_gate", "rank_multiplier", "rank_mask"):
        factor = getattr(module, name, None)
        if factor is not None:
            output = output * factor.to(output.dtype)
    return output


def _hook_ranks(lora_A: nn.Module) -> None:
    if not getattr(lora_A, "_ranks_hooked", False):
        lora_A.register_forward_hook(_scale_ranks)
        lora_A._ranks_hooked = True  # type: ignore[assignment]


def _sync_layer(site: Site, rank: int) -> None:
    layer, adapter = site._layer, site._adapter
    layer.r[adapter] = rank
    layer.lora_alpha[adapter] = alpha(layer.scaling[adapter], rank)
    if getattr(site._lora_A, "rank_multiplier", None) is not None:
        site._lora_A.rank_multiplier = None  # it refers to the components of before
    site._lora_A.out_features = rank
    site._lora_B.in_features = rank


def sync_config(sites: SiteSet) -> None:
    """Write ranks and alphas into the PEFT config, on anchored full names, dropped sites left out."""
    alive = [s for s in sites.values() if not s.is_dropped]
    if not alive:
        return
    stored = {s.name: s._lora_A.weight.shape[0] for s in alive}
    config = sites.peft_config
    config.target_modules = set(stored)
    alphas = {s.name: alpha(s.scaling, stored[s.name]) for s in alive}
    config.r = max(stored.values())
    config.lora_alpha = alpha(alive[0].scaling, config.r)
    config.rank_pattern = {anchored(n): r for n, r in stored.items() if r != config.r}
    config.alpha_pattern = {anchored(n): a for n, a in alphas.items() if a != config.lora_alpha}


def alpha(scaling: float, rank: int) -> int | float:
    """The lora_alpha that gives this scaling at this rank; PEFT expects an integer where it is one."""
    value = scaling * rank
    return int(value) if float(value).is_integer() else value


def anchored(name: str) -> str:
    """The `rank_pattern` key that matches this module and no other whose name ends alike."""
    return f"^{re.escape(name)}"


def enable_resizing_load(site: Site) -> None:
    """Let the site's layers take on the rank found in a state dict that is loaded into them."""

    def resize(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name in ("weight", "rank_gate"):
            value = state_dict.get(f"{prefix}{name}")
            param = getattr(module, name, None)
            if value is None or param is None or value.shape == param.shape:
                continue
            param.data = param.data.new_zeros(value.shape)
            if name == "weight" and not site.is_dropped:
                rank = value.shape[0] if module is site._lora_A else value.shape[1]
                _sync_layer(site, rank)

    for module in (site._lora_A, site._lora_B):
        module.register_load_state_dict_pre_hook(resize)
