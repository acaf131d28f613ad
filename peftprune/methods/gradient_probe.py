"""What GoRA and Fisher ranks share: gradients of the frozen weights before training, and ranks in their proportion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftprune.errors import RunError
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView

if TYPE_CHECKING:
    from torch import Tensor


class GradientProbe(RankPruningStrategy):
    """Sums a statistic of ∂loss/∂W over the first batches, without an update; then sites start at ranks of their own.

    Their configs have `batches`, and `least` and `most`, a site's ranks as multiples of the uniform one.
    """

    decides = ("before training",)
    signals = frozenset({Signal.DELTA_GRADIENT})

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sums: dict[str, Tensor] = {}

    @abstractmethod
    def statistic(self, gradient: Tensor) -> Tensor:
        """Returns what is summed of a batch's ∂loss/∂W, (d_out, d_in)."""

    @abstractmethod
    def weights(self, sites: Mapping[str, Site], means: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns what the ranks are in proportion to, from the means of the statistic over the batches."""

    def start_of(self, site: Site, rank: int, mean: Tensor, view: StepView) -> dict[str, Tensor]:
        """Returns initial values of the site at its rank; without any, A is random and B zero."""
        return {}

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)

    def phases(self, budget: ArmBudget) -> list[Phase]:
        steps = min(self.config.batches, max(1, budget.total_steps // 10))
        train = Phase("train", restart_schedule=True, reset_optimizer=True, signals=frozenset())
        return [Phase("probe", share=steps / budget.total_steps, kind="gradient"), train]

    def observe(self, view: StepView) -> None:
        for name, gradient in view.signals.get(Signal.DELTA_GRADIENT, {}).items():
            found = self.statistic(gradient)
            self.sums[name] = self.sums[name] + found if name in self.sums else found

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "probe":
            return PruningPlan()
        sums, self.sums = self.sums, {}
        # A layer that the loss does not depend on has no gradient.
        unused = {n: self.statistic(s.A.new_zeros(s.d_out, s.d_in)) for n, s in view.sites.items() if n not in sums}
        means = {name: total / view.phase.steps for name, total in (sums | unused).items()}
        weights = self.weights(view.sites, means)
        total = sum(weights.values())
        if not 0 < total < float("inf"):
            raise RunError(f"{self.name}: the gradients of the probe are zero or not finite. Check labels and dtype")
        ranks = self.ranks(weights, view)
        starts = {name: self.start_of(view.sites[name], rank, means[name], view) for name, rank in ranks.items()}
        return PruningPlan(
            reinit=ranks,
            assign={name: start for name, start in starts.items() if start},
            scores={name: weight / total for name, weight in weights.items()},
            reason=f"ranks by gradients, {min(ranks.values())} to {max(ranks.values())}",
        )

    def ranks(self, weights: Mapping[str, float], view: StepView) -> dict[str, int]:
        """Returns ranks in proportion to the weights, within the limits, that meet the budget."""
        shapes = [site.shape for site in view.sites.values()]
        uniform = view.budget.solve(shapes)
        least = {n: max(1, int(self.config.least * uniform[n])) for n in uniform}
        most = {s.name: min(s.max_rank, max(1, round(self.config.most * uniform[s.name]))) for s in shapes}
        low, high = 0.0, max(most[n] / w for n, w in weights.items() if w > 0)
        targets: dict[str, float] = dict(least)
        for _ in range(200):
            level = (low + high) / 2
            found = {n: min(max(level * w, least[n]), most[n]) for n, w in weights.items()}
            if sum(found[s.name] * s.unit_cost for s in shapes) > view.budget.params:
                high = level
            else:
                low, targets = level, found
        # The solver rounds, and spends what the limits leave.
        return view.budget.solve(shapes, targets)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = dict(state["sums"])
