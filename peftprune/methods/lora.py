from collections.abc import Sequence
from dataclasses import dataclass

from peftprune.methods.published_settings import published_runs
from peftprune.strategy import AdapterSpec, ArmBudget, Options, PaperSettings, RankPruningStrategy, option
from peftprune.strategy.sites import SiteShape, rank_cost


@dataclass(frozen=True)
class LoRAConfig(Options):
    rank: int | None = option(None, "convention", ge=1, later=True, help=
        "rank at every site whatever the budget allows, capped at the site's smaller side; None: the budget "
        "decides")  # fmt: skip


class LoRA(RankPruningStrategy):
    """Trains LoRA at a uniform rank that spends the budget; prunes nothing.

    A starts Kaiming-uniform with a = √5 (authors' code; the paper states a Gaussian), B at zero (paper). With `rank`,
    an arm beside the budget shows what another rank reaches, such as the large one that LoRPA cuts; it is marked as one
    that does not meet the budget.
    """

    name = "lora"
    source = "Hu et al., LoRA, ICLR 2022, arXiv 2106.09685"
    prunes = "nothing"
    Config = LoRAConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        rank = self.config.rank
        return super().spec(sites, budget) if rank is None else AdapterSpec(ranks=capped(rank, sites))

    def exempt(self, sites: Sequence[SiteShape], budget: ArmBudget) -> str | None:
        return None if self.config.rank is None else beside_budget(self.config.rank, sites, budget)

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, runs=published_runs("lora"))


def capped(rank: int, sites: Sequence[SiteShape]) -> dict[str, int]:
    """Returns this rank at every site, or as much of it as the site holds."""
    return {s.name: min(rank, s.max_rank) for s in sites}


def beside_budget(rank: int, sites: Sequence[SiteShape], budget: ArmBudget) -> str | None:
    """Returns what a rank by option spends, in words; None where it meets the budget, or none binds."""
    ranks = capped(rank, sites)
    cost, units = rank_cost(ranks, sites), [s.unit_cost for s in sites if ranks[s.name] < s.max_rank]
    if budget.paper or 0 <= budget.params - cost < min(units, default=float("inf")):
        return None
    least = min(ranks.values())
    less = "" if least == rank else f", {least} where a site holds no more"
    return f"rank {rank} by option{less}, {cost / budget.params:.3g} times the budget"
