"""PEFT's own AdaLoRA in the same trainer, as a cross-check of ours."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor, nn

from peftprune.adapters.initial import init_normal
from peftprune.adapters.inject import ADAPTER, task_type_of
from peftprune.errors import RunError, UsageError
from peftprune.methods.adalora import AdaLoRA, AdaLoRAConfig, check_numbers
from peftprune.methods.svd_components import INITIAL_STD
from peftprune.strategy.baseline import Baseline, Preparation
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.options import option
from peftprune.strategy.phases import resolve_phases
from peftprune.strategy.rng import generator
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass(frozen=True)
class AdaLoRAPeftConfig:
    """Options of adalora-peft; those of `adalora` by the same names.

    Attributes:
        initial_ratio: rank at the start (`init_r`, rounded up) as a multiple of the mean rank that the budget pays for,
            above 1: PEFT cannot start at its target. 1.5 is what PEFT's defaults, 12 and 8, amount to.
        warmup: share of the run before anything is pruned (`tinit`), in [0, 1). A convention of ours.
        final: share of the run after the last decision (`tfinal`), in [0, 1). A convention of ours.
        every: steps between decisions (`deltaT`), at least 1. A convention of ours; PEFT's default is 1.
        beta1: decay of the averaged sensitivity, in (0, 1). 0.85 in the authors' code and in PEFT.
        beta2: decay of its averaged uncertainty, in (0, 1). 0.85 in the authors' code and in PEFT.
        penalty: `orth_reg_weight`, at least 0. 0.1 in most of the authors' scripts; PEFT's default is 0.5.
    """

    initial_ratio: float = option(1.5, "convention of ours", "rank at the start, relative to the budget's")
    warmup: float = option(0.1, "convention of ours", "share of the run before anything is pruned")
    final: float = option(0.5, "convention of ours", "share of the run after the last decision")
    every: int = option(10, "convention of ours", "steps between decisions")
    beta1: float = option(0.85, "authors' code", "decay of the averaged sensitivity")
    beta2: float = option(0.85, "authors' code", "decay of its averaged uncertainty")
    penalty: float = option(0.1, "authors' code", "weight of the orthogonality penalty")

    def __post_init__(self) -> None:
        check_numbers("adalora-peft", vars(self))

    def as_adalora(self) -> AdaLoRAConfig:
        """The same schedule for our own AdaLoRA."""
        return AdaLoRAConfig(**vars(self))


class AdaLoRAPeft(Baseline):
    """PEFT's `AdaLoraConfig`, prepared, driven and finished as its documentation asks for.

    `update_and_allocate` is called after every optimizer step, counted from 1, with the run's own number of steps as
    `total_step`. PEFT adds the orthogonality penalty to the loss that a model computes from labels; this trainer
    computes the loss itself, so the penalty is added to the gradients instead, and no loss that is logged or evaluated
    contains it. The scaling is the run's: `lora_alpha` is chosen so that PEFT's alpha / (initial rank + 1e-5) gives it.
    After training the pruned triplets are removed, and the singular values are folded into B as every method's gates
    are, so that what is counted is what remains; the adapter that is written has no penalty any more, since PEFT would
    add it to evaluation losses too (conventions of ours).

    PEFT counts ranks, not parameters: with sites of one shape the budget is met exactly, otherwise on average.

    Source: Zhang et al., ICLR 2023; PEFT's `tuners/adalora`.
    """

    name: ClassVar[str] = "adalora-peft"
    source: ClassVar[str] = "Zhang et al., ICLR 2023, as in PEFT"
    prunes: ClassVar[str] = "ranks"
    exemption: ClassVar[str | None] = "PEFT counts ranks, not parameters: exact only where all sites have one shape"
    Config: ClassVar[type] = AdaLoRAPeftConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.averages: dict[str, dict[str, Tensor]] = {name: {} for name in _AVERAGES}
        self.kept: dict[str, list[bool]] | None = None
        self.decided = False

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        rank = self._initial_rank(sites, budget)
        smallest = min(sites, key=lambda s: s.max_rank)
        if rank > smallest.max_rank:
            raise UsageError.of(
                "adalora-peft.initial_ratio",
                self.config.initial_ratio,
                f"asks for rank {rank}, above the smaller side of {smallest.name}",
                "Lower it, or the budget",
            )
        if rank * len(sites) <= self._target(sites, budget):
            raise UsageError.of(
                "adalora-peft.initial_ratio",
                self.config.initial_ratio,
                "starts at the budget, where PEFT's allocator fails",
                "Give more than 1",
            )
        self._steps(budget)
        return AdapterSpec(
            ranks={s.name: rank for s in sites}, final_ranks=budget.solve(sites), decided_in_training=True
        )

    @staticmethod
    def _target(sites: Sequence[SiteShape], budget: ArmBudget) -> int:
        """How many triplets the budget pays for at the sites' mean cost."""
        return budget.params * len(sites) // sum(s.unit_cost for s in sites)

    def _initial_rank(self, sites: Sequence[SiteShape], budget: ArmBudget) -> int:
        return math.ceil(self.config.initial_ratio * self._target(sites, budget) / len(sites))

    def _steps(self, budget: ArmBudget) -> dict[str, int]:
        """Steps of the phases that our own AdaLoRA would have; refuses a run that is too short for them."""
        phases = resolve_phases(
            AdaLoRA(self.config.as_adalora()).phases(budget),
            total_steps=budget.total_steps,
            num_examples=budget.num_examples,
            batch_size=budget.batch_size,
        )
        return {phase.name: phase.steps for phase in phases}

    def prepare(self, model: nn.Module, given: Preparation) -> nn.Module:
        budget, target = given.budget, self._target(given.sites, given.budget)
        steps = self._steps(budget)
        rank = self._initial_rank(given.sites, budget)
        config = AdaLoraConfig(
            task_type=task_type_of(model),
            init_r=rank,
            target_r=max(1, target // len(given.sites)),
            tinit=steps.get("full", 0),
            tfinal=steps.get("final", 0),
            total_step=budget.total_steps,
            deltaT=self.config.every,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            orth_reg_weight=float(self.config.penalty),
            lora_alpha=given.scaling * (rank + 1e-5),
            lora_dropout=given.lora_dropout,
            target_modules=[s.name for s in given.sites],
            modules_to_save=list(given.head) or None,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            adapted = get_peft_model(model, config, adapter_name=ADAPTER)
        adapted.peft_config[ADAPTER].modules_to_save = list(given.head) or None
        # PEFT's target is a whole number of ranks per site; the budget may lie between two.
        adapted.base_model.rankallocator.target_bgt = target
        with torch.no_grad():
            for site in given.sites:
                layer = adapted.base_model.model.get_submodule(site.name)
                for kind, held in (("A", layer.lora_A), ("B", layer.lora_B)):
                    rng = generator(given.seed, "init", site.name, kind)
                    held[ADAPTER].copy_(init_normal(kind, site, rank, INITIAL_STD, rng))
        return adapted

    def penalty(self, model: nn.Module) -> Tensor | None:
        if self.config.penalty == 0:
            return None
        norms = []
        for _, layer in _layers(model):
            A, B = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
            for gram in (A @ A.T, B.T @ B):
                norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        return self.config.penalty * torch.stack(norms).mean()

    def after_step(self, model: nn.Module, step: int) -> None:
        tuner: Any = model.base_model
        config, allocator = tuner.peft_config[ADAPTER], tuner.rankallocator
        for name, values in self.averages.items():
            setattr(allocator, name, values)
        config.rank_pattern = self.kept
        tuner.update_and_allocate(step)
        self.averages = {name: dict(getattr(allocator, name)) for name in _AVERAGES}
        # PEFT would write, and on loading build, a smaller adapter than the one in training.
        self.kept, config.rank_pattern = config.rank_pattern, None
        self.decided = step >= config.total_step - config.tfinal

    def finish(self, model: nn.Module) -> Mapping[str, int] | None:
        tuner: Any = model.base_model
        config = tuner.peft_config[ADAPTER]
        if self.kept is None or not self.decided:
            raise RunError(
                "adalora-peft: training ended before the last decision, so that nothing was pruned. Let it run to "
                f"step {config.total_step - config.tfinal} of {config.total_step}"
            )
        with torch.no_grad():
            tuner.resize_modules_by_rank_pattern(self.kept, ADAPTER)
            for _, layer in _layers(model):
                layer.lora_B[ADAPTER].mul_(layer.lora_E[ADAPTER].T)
                layer.lora_E[ADAPTER].fill_(1.0).requires_grad_(False)
        # Columns of B that carry singular values are not to be orthonormal.
        config.orth_reg_weight = 0.0
        ranks = {name: layer.lora_A[ADAPTER].shape[0] for name, layer in _layers(model)}
        for name, layer in _layers(model):
            if ranks[name] == 0:
                # PEFT's files cannot hold an empty adapter.
                parent, _, child = name.rpartition(".")
                setattr(tuner.model.get_submodule(parent), child, layer.get_base_layer())
        config.target_modules = {name for name, rank in ranks.items() if rank}
        config.rank_pattern = {key: kept for key, kept in self.kept.items() if any(kept)}
        return ranks

    def state_dict(self) -> dict[str, Any]:
        return {"averages": {n: dict(v) for n, v in self.averages.items()}, "kept": self.kept, "decided": self.decided}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.averages = {n: dict(v) for n, v in state["averages"].items()}
        self.kept, self.decided = state["kept"], state["decided"]


def _layers(model: Any) -> list[tuple[str, Any]]:
    """PEFT's AdaLoRA layers with their names in the base model."""
    inner = model.base_model.model
    return [(name, module) for name, module in inner.named_modules() if isinstance(module, AdaLoraLayer)]
