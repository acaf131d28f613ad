"""LoRA with one thing changed: the rule for its scaling, or which of its factors is trained. Nothing is pruned.

Both are strategies rather than baselines: they differ from LoRA in a number or a switch that `AdapterSpec` holds, so
that injection, ledger, export and resuming are those of LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec, ParameterGroup


@dataclass(frozen=True)
class RSLoRAConfig:
    """Options of rslora.

    Attributes:
        alpha: numerator of the scaling, at least 0. 0 takes the alpha that LoRA has at the same rank under the run's
            scaling, alpha = scaling · r, so that only the rule differs (a convention of ours).
    """

    alpha: float = option(0.0, "convention of ours", "numerator of the scaling; 0 takes LoRA's at the same rank")

    def __post_init__(self) -> None:
        check_option(
            0 <= self.alpha < float("inf"),
            "rslora", "alpha", self.alpha, "is negative or not finite", "Give 16, for example, or 0",
        )  # fmt: skip


class RSLoRA(RankPruningStrategy):
    """LoRA at uniform rank whose update is scaled by alpha / √r instead of alpha / r (stated in the paper).

    With LoRA's own alpha the factor is √r times LoRA's. The learning rate stays the run's, as for every method (a
    convention of ours).

    Source: Kalajdzievski, 2023, arXiv 2312.03732.
    """

    name: ClassVar[str] = "rslora"
    source: ClassVar[str] = "Kalajdzievski, 2023, arXiv 2312.03732"
    prunes: ClassVar[str] = "nothing"
    Config: ClassVar[type] = RSLoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        ranks = budget.solve(sites)
        if self.config.alpha:
            factors = {name: rank**-0.5 for name, rank in ranks.items()}
            return AdapterSpec(ranks=ranks, scaling=self.config.alpha, relative_scaling=factors)
        return AdapterSpec(ranks=ranks, relative_scaling={name: rank**0.5 for name, rank in ranks.items()})


class LoRAFA(RankPruningStrategy):
    """LoRA at uniform rank whose A stays as it was drawn: only B is trained (stated in the paper).

    The budget counts A and B, since both are stored and served, so the rank is that of LoRA and about half as many
    parameters are trained; the ledger's `trained_params` says how many (a convention of ours). B is trained by the same
    AdamW as every method's; PEFT's own LoRA-FA optimizer also rescales B's gradient by the inverse of A·Aᵀ, which is
    left out here (a convention of ours).

    Source: Zhang et al., LoRA-FA, 2023, arXiv 2308.03303.
    """

    name: ClassVar[str] = "lora-fa"
    source: ClassVar[str] = "Zhang et al., 2023, arXiv 2308.03303"
    prunes: ClassVar[str] = "nothing"

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        groups = {**AdapterSpec(ranks={}).groups, "A": ParameterGroup(trained=False)}
        return AdapterSpec(ranks=budget.solve(sites), groups=groups)
