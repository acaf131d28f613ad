import peftprune
from peftprune.scoring import keep_top


class LargestB(peftprune.RankPruningStrategy):
    """Trains at twice the budget's rank, then keeps the components with the largest columns of B."""

    name = "largest-b"

    def spec(self, sites, budget):
        final = budget.solve(sites)
        wide = {s.name: min(2 * final[s.name], s.max_rank) for s in sites}
        return peftprune.AdapterSpec(ranks=wide, final_ranks=final)

    def phases(self, budget):
        return [peftprune.Phase("wide", share=0.5), peftprune.Phase("narrow", restart_schedule=True)]

    def end_phase(self, view):
        if view.phase.name != "wide":
            return peftprune.PruningPlan()
        final = view.budget.solve([site.shape for site in view.sites.values()])
        keep = {name: keep_top(site.B.norm(dim=0), final[name]) for name, site in view.sites.items()}
        return peftprune.PruningPlan(keep=keep, reason="kept the largest columns of B")
