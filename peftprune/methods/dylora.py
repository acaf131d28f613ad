"""DyLoRA: every step trains a truncation drawn at random, so that the components are ordered and any rank serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class DyLoRAConfig:
    """Options of DyLoRA.

    Attributes:
        initial_rank: the largest rank that is trained, capped at each site's smaller side; 0, or anything below the
            budget's ranks, takes the budget's. 0 is a convention of ours. Above it the first components are kept after
            the last step, as many as the budget pays for.
        smallest: the smallest rank that is trained, at least 1. 1 in the paper's runs, as secondary summaries give it.
        rescale: multiply the truncation to b of r components by r / b, so that its scaling is alpha / b (authors'
            code).
    """

    initial_rank: int = option(0, "convention of ours", "largest rank in training; 0: the budget's")
    smallest: int = option(1, "secondary summary", "smallest rank in training")
    rescale: bool = option(True, "authors' code", "multiply a truncation to b of r components by r / b")

    def __post_init__(self) -> None:
        check_option(
            self.initial_rank >= 0,
            "dylora", "initial_rank", self.initial_rank, "is negative", "Give 0 for the budget's own rank",
        )  # fmt: skip
        check_option(
            self.smallest >= 1, "dylora", "smallest", self.smallest, "is not a whole number above 0", "Give 1 or more"
        )


class DyLoRA(RankPruningStrategy):
    """Every step draws b and trains the first b components of every site; afterwards any first few of them serve.

    b is drawn uniformly from the smallest to the largest rank (that it is drawn anew in every step is stated in the
    paper; one draw for all sites, and that it is uniform, are conventions of ours), and the forward pass uses A[:b] and
    B[:, :b] alone; a site with fewer components uses all of them. So the components are ordered by importance, and the
    truncation to the budget's ranks after training needs no score and no further training. With `rescale` the factor
    r / b of a truncation is folded into B when it becomes final. The paper's second variant, which updates the b-th
    component only, is not offered.

    Under `budget="paper"` rank, scaling (16 / 8), weight decay and warm-up are those of the authors' code for GLUE. Its
    learning rates are left out: they continue adapters trained on MNLI.

    By default nothing is truncated: the largest rank is the budget's, as in the paper's comparison with LoRA. The trace
    holds no scores.

    Source: Valipour et al., EACL 2023, arXiv 2210.07558; code huawei-noah/Efficient-NLP.
    """

    name: ClassVar[str] = "dylora"
    source: ClassVar[str] = "Valipour et al., EACL 2023"
    Config: ClassVar[type] = DyLoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        widest = {s.name: max(final[s.name], min(self.config.initial_rank, s.max_rank)) for s in sites}
        check_option(
            self.config.smallest <= max(widest.values()),
            "dylora", "smallest", self.config.smallest, f"is above the largest rank, {max(widest.values())}",
            "Give a smaller one, or a larger initial_rank",
        )  # fmt: skip
        return AdapterSpec(ranks=widest, final_ranks=final)

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, scaling=2.0, weight_decay=0.1, warmup_ratio=0.06)

    def before_step(self, view: StepView) -> Mapping[str, Tensor]:
        largest = max(site.rank for site in view.sites.values())
        b = int(torch.randint(self.config.smallest, largest + 1, (1,), generator=view.rng))
        return {name: self._multipliers(site, b) for name, site in view.sites.items()}

    def _multipliers(self, site: Site, b: int) -> Tensor:
        """(r,): the factor of the first b components, 0 for the others."""
        used = min(b, site.rank)
        factor = torch.zeros(site.rank, device=site.A.device)
        factor[:used] = self._factor(site.rank, used)
        return factor

    def _factor(self, rank: int, used: int) -> float:
        return rank / used if self.config.rescale else 1.0

    def end_phase(self, view: StepView) -> PruningPlan:
        final = view.budget.solve([site.shape for site in view.sites.values()])
        cut = {name: site for name, site in view.sites.items() if final[name] < site.rank}
        return PruningPlan(
            keep={name: range(final[name]) for name in cut},
            assign={
                name: {"B": site.B[:, : final[name]] * self._factor(site.rank, final[name])}
                for name, site in cut.items()
                if self.config.rescale
            },
            reason="truncated to the first components",
        )
