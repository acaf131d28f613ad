from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from peftprune import scoring
from peftprune.methods.global_cut import cut_to_budget
from peftprune.strategy import AdapterSpec, ArmBudget, Options, PruningPlan, RankPruningStrategy, SiteShape, option
from peftprune.strategy.method import Action, Decides
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class SVDConfig(Options):
    initial_rank: int = option(32, "convention", ge=1, help=
        "rank during training, at least the budget's and capped at each site's smaller side")  # fmt: skip


class SVD(RankPruningStrategy):
    """Trains LoRA at a large rank; after the last step keeps the largest singular values of all updates together.

    With ΔW = scaling · B A at each site, one threshold holds for the singular values of all sites: they are taken in
    descending order until the budget is spent, so a site may end at any rank, 0 included. A singular value that costs
    more than is left is skipped, and cheaper ones below it are still taken. The remaining factors are U √S and √S V of
    the truncated update. Singular values come from the factors (QR), never from ΔW itself. The truncation is the best
    approximation of each update in the Frobenius norm (Eckart and Young, 1936). PARA (arXiv 2604.27796) prunes so.

    Scores in the trace: for each site, the Frobenius norm of its update before the truncation; components are numbered
    in descending order of singular value.
    """

    name = "svd"
    source = "control: truncation after training"
    decides: ClassVar[tuple[Decides, ...]] = ("at the end",)
    actions: ClassVar[tuple[Action, ...]] = ("cut ranks", "redistribute ranks", "set values")
    Config: ClassVar[type] = SVDConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        dense = {s.name: max(final[s.name], min(self.config.initial_rank, s.max_rank)) for s in sites}
        return AdapterSpec(ranks=dense, final_ranks=final, decided_in_training=True)

    def end_phase(self, view: StepView) -> PruningPlan:
        found = {name: scoring.update_svd(site.A, site.B) for name, site in view.sites.items()}
        values = {name: view.sites[name].scaling * S for name, (_, S, _) in found.items()}
        keep, grow = cut_to_budget(values, view)
        assign = {}
        for name, (U, S, V) in found.items():
            n, site = len(keep[name]), view.sites[name]
            # A site that keeps all components needs no truncation.
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
