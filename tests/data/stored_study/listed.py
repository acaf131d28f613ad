"""A strategy of a user's own. What it keeps stands in a file, which the first run lacks."""

import json
from pathlib import Path

from peftprune import AdapterSpec, PruningPlan, RankPruningStrategy


class Listed(RankPruningStrategy):
    """Starts at twice the rank; half-way, every site keeps the components that keep.json lists."""

    name = "listed"

    def spec(self, sites, budget):
        final = budget.solve(sites)
        return AdapterSpec(ranks={n: 2 * r for n, r in final.items()}, final_ranks=final)

    def decide(self, view):
        if view.step != view.total_steps // 2:
            return PruningPlan()
        listed = json.loads(Path("keep.json").read_text())
        return PruningPlan(keep=dict.fromkeys(view.sites, listed), reason="kept what keep.json lists")
