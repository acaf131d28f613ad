from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.lazy import Module, Tensor
from peftprune.strategy.method import Method, Preparation
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import Site, SiteShape, rank_cost
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView

__all__ = ["Baseline", "Preparation"]


class Baseline(Method):
    """A method that is not rank pruning: it prepares the model once and is then trained like every other arm.

    `Method` documents the class attributes.
    """

    prepares_model: ClassVar[bool] = True

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        """Returns the ranks at the sites, if it has any, and the optimizer settings. Default: no ranks.

        Trained tensors that are neither A nor B belong to the group "head".
        """
        return AdapterSpec(ranks={})

    def multiplied(self, sites: Sequence[SiteShape], spec: AdapterSpec) -> tuple[int, int]:
        """Returns multiplied entries, see `Method.multiplied`. Default: A and B of the spec's ranks, all trained."""
        entries = rank_cost(spec.ranks, sites)
        return entries, entries

    @abstractmethod
    def prepare(self, model: Module, given: Preparation) -> Module:
        """Returns the model to train: what is to be trained has `requires_grad`, the head included.

        The model is the arm's own copy. It may lie on the meta device, where planning only counts parameters.
        """

    def penalty(self, model: Module) -> Tensor | None:
        """Returns a penalty of the prepared model, as `RankPruningStrategy.penalty` does of sites. Default: none."""
        return None

    def after_step(self, model: Module, step: int) -> None:
        """Called after every optimizer step (the first is 1), while its gradients are still there.

        May change values of the model, not shapes. Default: nothing.
        """
        return

    def penalty_for(self, model: Module, sites: Mapping[str, Site]) -> Tensor | None:
        return self.penalty(model)

    def plan_for(self, model: Module, view: StepView) -> PruningPlan:
        self.after_step(model, view.step)
        return PruningPlan()
