"""PEFT's own AdaLoRA in the same trainer, as a cross-check of `adalora`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftprune import scoring
from peftprune.errors import RunError, UsageError
from peftprune.methods.adalora import AdaLoRA
from peftprune.methods.svd_components import INITIAL_STD, check_shares
from peftprune.strategy import AdapterSpec, ArmBudget, Baseline, LiveTensors, Options, Preparation, SiteShape, option
from peftprune.strategy.lazy import Module, Tensor, peft, torch
from peftprune.strategy.rng import generator

_ADAPTER = "default"
"""The name that PEFT gives an adapter by default."""
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass(frozen=True)
class AdaLoRAPeftConfig(Options):
    initial_ratio: float = option(1.5, "convention", ge=1, help=
        "rank at the start (`init_r`, rounded up) as a multiple of the mean rank that the budget pays for; PEFT cannot "
        "start at its target, and its defaults (12 and 8) give 1.5")  # fmt: skip
    warmup: float = option(0.1, "convention", ge=0, lt=1, help="share of the run before anything is pruned (`tinit`)")
    final: float = option(0.5, "convention", ge=0, lt=1, help="share of the run after the last decision (`tfinal`)")
    every: int = option(10, "convention", ge=1, help="steps between decisions (`deltaT`); PEFT's default is 1")
    beta1: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of the averaged sensitivity, also in PEFT")
    beta2: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of its averaged uncertainty, also in PEFT")
    penalty: float = option(0.1, "authors' code", ge=0, help=
        "weight of the orthogonality penalty (`orth_reg_weight`), as in most of the authors' scripts; PEFT has "
        "0.5")  # fmt: skip


class AdaLoRAPeft(Baseline):
    """Runs PEFT's AdaLoRA as its documentation asks, in the trainer that all methods share.

    `update_and_allocate` is called after every optimizer step, counted from 1, with the run's number of steps as
    `total_step`. PEFT adds the orthogonality penalty to the loss that a model computes from labels; this trainer
    computes the loss itself, so the penalty is added to the gradients instead, and no loss that is logged or evaluated
    contains it. The scaling is the run's: `lora_alpha` is chosen so that PEFT's alpha / (initial rank + 1e-5) gives it.
    After training the pruned triplets are removed and the singular values are folded into B, as the gates of every
    method are, so that what is counted is what remains. The adapter is written without the penalty, which PEFT would
    otherwise add to evaluation losses too. All of this is convention.

    PEFT counts ranks, not parameters: the budget is met exactly with sites of one shape, and otherwise on average.
    """

    name = "adalora-peft"
    source = "Zhang et al., ICLR 2023, arXiv 2303.10512; PEFT's `tuners/adalora`"
    prunes = "ranks"
    decides = ("repeatedly",)
    actions = ("cut ranks", "zero entries")
    exemption = "PEFT counts ranks, not parameters: exact only where all sites have one shape"
    Config = AdaLoRAPeftConfig
    state_names = ("averages", "kept", "decided")
    averages: dict[str, dict[str, Tensor]]
    kept: dict[str, list[bool]] | None = None
    decided = False

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        check_shares(self)

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        rank = self._initial_rank(sites, budget)
        smallest = min(sites, key=lambda s: s.max_rank)
        field, ratio = "adalora-peft.initial_ratio", self.config.initial_ratio
        if rank > smallest.max_rank:
            problem = f"gives an initial rank of {rank}, above the smaller side of {smallest.name}"
            raise UsageError.of(field, ratio, problem, "Lower it, or the budget")
        if rank * len(sites) <= self._target(sites, budget):
            problem = "starts at the budget, where PEFT's allocator fails"
            raise UsageError.of(field, ratio, problem, "Give more than 1")
        self._steps(budget)
        ranks = {s.name: rank for s in sites}
        return AdapterSpec(ranks, final_ranks=budget.solve(sites), decided_in_training=True)

    @staticmethod
    def _target(sites: Sequence[SiteShape], budget: ArmBudget) -> int:
        """Returns the number of triplets that the budget pays for at the sites' mean cost."""
        return budget.params * len(sites) // sum(s.unit_cost for s in sites)

    def _initial_rank(self, sites: Sequence[SiteShape], budget: ArmBudget) -> int:
        return math.ceil(self.config.initial_ratio * self._target(sites, budget) / len(sites))

    def _steps(self, budget: ArmBudget) -> dict[str, int]:
        """Returns the steps of the phases that `adalora` would have; refuses a run that is too short for them."""
        return {name: phase.steps for name, phase in AdaLoRA(**vars(self.config)).ranges(budget).items()}

    def prepare(self, model: Module, given: Preparation) -> Module:
        from peftprune.adapters.initial import init_normal
        from peftprune.adapters.inject import task_type_of, wrap

        budget, target = given.budget, self._target(given.sites, given.budget)
        steps = self._steps(budget)
        rank = self._initial_rank(given.sites, budget)
        config = peft.AdaLoraConfig(
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
        adapted: Any = wrap(model, config, given.head)
        # PEFT's target is a whole number of ranks per site; the budget may lie between two.
        adapted.base_model.rankallocator.target_bgt = target
        with torch.no_grad():
            for site in given.sites:
                layer = adapted.base_model.model.get_submodule(site.name)
                for kind, held in (("A", layer.lora_A), ("B", layer.lora_B)):
                    rng = generator(given.seed, "init", site.name, kind)
                    held[_ADAPTER].copy_(init_normal(kind, site, rank, INITIAL_STD, rng))
        return adapted

    def penalty(self, model: Module) -> Tensor | None:
        if self.config.penalty == 0:
            return None
        pairs = {
            name: LiveTensors(layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER], None) for name, layer in _layers(model)
        }
        return self.config.penalty * scoring.orthogonality(pairs)

    def after_step(self, model: Module, step: int) -> None:
        tuner: Any = model.base_model
        config, allocator = tuner.peft_config[_ADAPTER], tuner.rankallocator
        for name, values in self.averages.items():
            setattr(allocator, name, dict(values))
        config.rank_pattern = self.kept
        tuner.update_and_allocate(step)
        self.averages = {name: dict(getattr(allocator, name)) for name in _AVERAGES}
        # With a rank pattern, PEFT would write and load a smaller adapter than the one in training.
        self.kept, config.rank_pattern = config.rank_pattern, None
        self.decided = step >= config.total_step - config.tfinal

    def finish(self, model: Module) -> Mapping[str, int] | None:
        tuner: Any = model.base_model
        config = tuner.peft_config[_ADAPTER]
        if self.kept is None or not self.decided:
            raise RunError(
                "adalora-peft: training ended before the last decision, so that nothing was pruned. Let it run to "
                f"step {config.total_step - config.tfinal} of {config.total_step}"
            )
        with torch.no_grad():
            tuner.resize_modules_by_rank_pattern(self.kept, _ADAPTER)
            for _, layer in _layers(model):
                layer.lora_B[_ADAPTER].mul_(layer.lora_E[_ADAPTER].T)
                layer.lora_E[_ADAPTER].fill_(1.0).requires_grad_(False)
        # B now carries the singular values, so its columns must not be drawn to orthonormality.
        config.orth_reg_weight = 0.0
        ranks = {name: layer.lora_A[_ADAPTER].shape[0] for name, layer in _layers(model)}
        for name, layer in _layers(model):
            if ranks[name] == 0:
                # PEFT's files cannot hold an empty adapter.
                parent, _, child = name.rpartition(".")
                setattr(tuner.model.get_submodule(parent), child, layer.get_base_layer())
        config.target_modules = {name for name, rank in ranks.items() if rank}
        config.rank_pattern = {key: kept for key, kept in self.kept.items() if any(kept)}
        return ranks


def _layers(model: Any) -> list[tuple[str, Any]]:
    inner, kind = model.base_model.model, peft.tuners.adalora.AdaLoraLayer
    return [(name, module) for name, module in inner.named_modules() if isinstance(module, kind)]
