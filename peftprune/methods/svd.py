"""Plain LoRA at a large rank, truncated after training: the simplest rival of every method that allocates ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peftprune.methods.global_cut import cut_to_budget
from peftprune.scoring.spectrum import update_svd
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class SVDConfig:
    """Options of svd.

    Attributes:
        initial_rank: rank during training, at least the budget's and capped at each site's smaller side. 32 is a
            convention of ours.
    """

    initial_rank: int = option(32, "convention of ours", "rank during training")

    def __post_init__(self) -> None:
        check_option(
            self.initial_rank >= 1,
            "svd", "initial_rank", self.initial_rank, "is not a whole number above 0", "Give 32, for example",
        )  # fmt: skip


class SVD(RankPruningStrategy):
    """Train LoRA at a large rank; after the last step keep the largest singular values of all updates together.

    With ΔW = scaling · B A at each site, one threshold holds for the singular values of all sites: they are taken in
    descending order as long as the budget pays for them, so a site may end at any rank, 0 included. One that costs more
    than what is left is passed over and cheaper ones below it are still taken, so that the budget is spent. The
    remaining factors are U √S and √S V of the truncated update. Singular values come from the factors (QR), never from
    ΔW itself. A control of ours; the truncation is the best approximation of each update in the Frobenius norm (Eckart
    and Young, 1936).

    The trace holds, for each site, the Frobenius norm of its update before the truncation; its components are counted
    in descending order of singular value.
    """

    name: ClassVar[str] = "svd"
    source: ClassVar[str] = "control of ours: truncation after training"
    Config: ClassVar[type] = SVDConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        dense = {s.name: max(final[s.name], min(self.config.initial_rank, s.max_rank)) for s in sites}
        return AdapterSpec(ranks=dense, final_ranks=final, decided_in_training=True)

    def end_phase(self, view: StepView) -> PruningPlan:
        found = {name: update_svd(site.A, site.B) for name, site in view.sites.items()}
        values = {name: view.sites[name].scaling * S for name, (_, S, _) in found.items()}
        keep, grow = cut_to_budget(values, view)
        assign = {}
        for name, (U, S, V) in found.items():
            n, site = len(keep[name]), view.sites[name]
            # A site that keeps everything keeps its factors: there is nothing to truncate.
            if 0 < n < site.rank:
                root = S[:n].sqrt()
                assign[name] = {"A": (root[:, None] * V[:n]).to(site.A), "B": (U[:, :n] * root).to(site.B)}
        held = sum(len(kept) > 0 for kept in keep.values())
        return PruningPlan(
            keep=keep,
            grow=grow,
            assign=assign,
            scores={name: float(S.norm()) for name, S in values.items()},
            reason=f"truncated to the largest singular values; {held} of {len(keep)} sites keep some",
        )
