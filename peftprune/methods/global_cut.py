"""Cutting all sites together to the budget: what methods that score rank components globally end with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from peftprune.scoring import keep_top_global, units_that_fit
from peftprune.strategy.view import StepView


def cut_to_budget(scores: Mapping[str, Tensor], view: StepView) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The components to keep so that the budget is met, and the units to grow where less than all of it could be spent.

    Growing is rare: it happens where every component of the cheapest sites is kept and what is left pays for one more
    of them, but for none of the dearer ones. It changes no function.

    Args:
        scores: site to the scores of all its components, (rank,).
        view: sites and budget.

    Returns:
        `keep` and `grow` of a `PruningPlan`.
    """
    costs = {n: view.sites[n].unit_cost for n in scores}
    keep = keep_top_global(scores, costs, view.budget.params)
    caps = {n: view.sites[n].max_rank for n in scores}
    grow = units_that_fit({n: len(kept) for n, kept in keep.items()}, costs, caps, view.budget.params)
    return keep, grow
