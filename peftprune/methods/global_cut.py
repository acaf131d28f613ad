"""Meets the budget over all sites together, for methods that score rank components globally."""

from collections.abc import Mapping

from peftprune import scoring
from peftprune.strategy.lazy import Tensor
from peftprune.strategy.view import StepView


def cut_to_budget(scores: Mapping[str, Tensor], view: StepView) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Returns `keep` and `grow` of a plan that meets the budget, from the (rank,) scores of each site's components."""
    keep = keep_within(scores, view, view.budget.params)
    return keep, units_left({name: len(kept) for name, kept in keep.items()}, view)


def keep_within(scores: Mapping[str, Tensor], view: StepView, params: int) -> dict[str, list[int]]:
    """Returns each site's components among the highest-scoring ones that `params` parameters pay for."""
    return scoring.keep_top_global(scores, {name: view.sites[name].unit_cost for name in scores}, params)


def units_left(ranks: Mapping[str, int], view: StepView) -> dict[str, int]:
    """Returns site to further units of rank that the budget still pays for beside `ranks`.

    There are some where all components of the cheapest sites are kept. Growing by them does not change the function.
    """
    sites = view.sites
    costs, caps = {n: sites[n].unit_cost for n in ranks}, {n: sites[n].max_rank for n in ranks}
    return scoring.units_that_fit(ranks, costs, caps, view.budget.params)
