"""LoRA with one change: the rule of its scaling, or which of its factors is trained. Nothing is pruned."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftprune.strategy import ArmBudget, Options, RankPruningStrategy, SiteShape, option
from peftprune.strategy.spec import AdapterSpec, ParameterGroup, default_groups


@dataclass(frozen=True)
class RSLoRAConfig(Options):
    alpha: float = option(0.0, "convention", ge=0, help=
        "numerator of the scaling; 0 takes LoRA's alpha at the same rank (the run's scaling · r), so that only the "
        "rule differs")  # fmt: skip


class RSLoRA(RankPruningStrategy):
    """LoRA at a uniform rank whose update is scaled by alpha / √r instead of alpha / r (paper).

    With LoRA's own alpha the factor is √r times LoRA's. The learning rate is the run's, as for every method
    (convention).
    """

    name = "rslora"
    source = "Kalajdzievski, 2023, arXiv 2312.03732"
    prunes = "nothing"
    Config = RSLoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        ranks = budget.solve(sites)
        power = -0.5 if self.config.alpha else 0.5
        factors = {name: rank**power for name, rank in ranks.items()}
        return AdapterSpec(ranks=ranks, scaling=self.config.alpha or None, relative_scaling=factors)


class LoRAFA(RankPruningStrategy):
    """LoRA at a uniform rank that trains B only; A keeps its initial values (paper).

    The budget counts A and B, since both are stored and served. The rank is therefore LoRA's, and about half as many
    parameters are trained (convention); the ledger's `trained_params` counts them. B is trained by the same AdamW as in
    every method. PEFT's LoRA-FA optimizer also rescales B's gradient by the inverse of A·Aᵀ, which is left out here
    (convention).
    """

    name = "lora-fa"
    source = "Zhang et al., LoRA-FA, 2023, arXiv 2308.03303"
    prunes = "nothing"

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks=budget.solve(sites), groups=default_groups(A=ParameterGroup(trained=False)))
