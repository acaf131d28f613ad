"""transplant: the final allocation of another method, trained from the start as plain LoRA."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from peftprune.strategy import AdapterSpec, ArmBudget, PruningPlan, RankPruningStrategy, SiteShape, StepView
from peftprune.strategy.method import Decides
from peftprune.strategy.options import Options, check_option, option


@dataclass(frozen=True)
class TransplantConfig(Options):
    of: str = option("adalora", "convention", help=
        "label of the method whose ranks and shared adapters are taken; with `method`, its study's folder")  # fmt: skip
    method: str = option("", "convention", later=True, help=
        "label of a method of the stored study `of`, whose arms of the same seeds are taken")  # fmt: skip


class OfAnother(RankPruningStrategy):
    """Base of the controls that start from the outcome of another method, of the same or of another study."""

    source = "control for every method that allocates ranks"
    prunes = "nothing"
    decides: ClassVar[tuple[Decides, ...]] = ("at the start",)

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        cure = f"Give of={type(self.config)().of!r}, for example"
        check_option(bool(self.config.of.strip()), self.name, "of", self.config.of, "is empty", cure)

    @property
    def depends_on(self) -> str | None:
        return self.config.method or self.config.of

    @property
    def elsewhere(self) -> str | None:
        return self.config.of if self.config.method else None


class Transplant(OfAnother):
    """Trains plain LoRA with the final ranks of another method; shows what the ranks are worth without their history.

    The other arm of the same task, budget and seed runs first, or belongs to another stored study, such as one of
    another task. Sites start with its final ranks; a site of rank 0 has
    no adapter. Sites that shared an adapter share that of the first of them from the second step on. An allocation that
    does not meet the budget is taken as it is, and marked. The trace holds no scores.
    """

    name = "transplant"
    prunes = "sites"
    decides = ("once",)
    actions = ("share adapters",)
    Config = TransplantConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        if budget.outcome is None:
            return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)
        final = {s.name: budget.outcome.ranks[s.name] for s in sites}
        return AdapterSpec(final | {n: final[g[0]] for g in budget.outcome.shared for n in g}, final_ranks=final)

    def exempt(self, sites: Sequence[SiteShape], budget: ArmBudget) -> str | None:
        if budget.outcome is None or budget.paper:
            return None
        ranks = budget.outcome.ranks
        room = budget.params - sum(ranks[s.name] * s.unit_cost for s in sites)
        further = [s.unit_cost for s in sites if 0 < ranks[s.name] < s.max_rank]
        return None if 0 <= room < min(further, default=room + 1) else f"takes the ranks of {self.depends_on}"

    def decide(self, view: StepView) -> PruningPlan:
        if view.step != 1 or view.budget.outcome is None or not view.budget.outcome.shared:
            return PruningPlan()
        return PruningPlan(share=view.budget.outcome.shared, reason=f"shared as in {self.depends_on}")
