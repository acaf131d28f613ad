"""`RankPruningStrategy`: the interface of every rank-pruning method.

A strategy reads a `StepView` and returns decisions. It never touches a tensor: `peftprune.adapters.surgery` applies
every `PruningPlan`, and one trainer drives all strategies through the same events (see `peftprune.training.trainer`).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.lazy import Module, Tensor
from peftprune.strategy.method import Method
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import LiveTensors, Site, SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView


class RankPruningStrategy(Method):
    """A rank-pruning method. Subclass it, set `name`, override what differs; every other default is plain LoRA.

    `Method` documents the class attributes; the default of `prunes` is "ranks" here.
    """

    prunes: ClassVar[str] = "ranks"

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        """Returns the starting adapters. Default: uniform rank at the budget."""
        return AdapterSpec(ranks=budget.solve(sites))

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor | None:
        """Returns a differentiable scalar added to the training loss, never to the evaluation loss; None adds nothing.

        `sites` holds those whose rank is above 0.
        """
        return None

    def decide(self, view: StepView) -> PruningPlan:
        """Called after the optimizer step: new weights, the gradients that led to them."""
        return PruningPlan()

    def penalty_for(self, model: Module, sites: Mapping[str, Site]) -> Tensor | None:
        return self.penalty({name: site.live() for name, site in sites.items() if site.rank})

    def plan_for(self, model: Module, view: StepView) -> PruningPlan:
        return self.decide(view)
