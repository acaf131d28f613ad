from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from peftprune.errors import RunError
from peftprune.strategy import AdapterSpec, ArmBudget, Options, Phase, PruningPlan, RankPruningStrategy, Signal, option
from peftprune.strategy.lazy import Tensor
from peftprune.strategy.method import Action
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class FisherConfig(Options):
    batches: int = option(8, "secondary summary", ge=1, help=
        "batches whose gradients are read before training, at most a tenth of the run (convention)")  # fmt: skip
    least: float = option(0.0, "secondary summary", ge=0, le=1, help=
        "a site's smallest rank as a multiple of the uniform one, but at least 1")  # fmt: skip
    most: float = option(2.0, "secondary summary", ge=1, help=
        "a site's largest rank as a multiple of the uniform one")  # fmt: skip


class Fisher(RankPruningStrategy):
    """Allocates ranks in proportion to the mean squared gradient of the frozen weights.

    The score of a site is the mean over its weights' entries and over batches of the squared gradient of a batch's
    loss: the diagonal of an empirical Fisher matrix (secondary summary). The model is in training mode and nothing is
    updated; the probe is charged to the training budget. Ranks are rounded by largest remainder within limits
    (secondary summary), here at the factor that spends the budget in parameters. Where the limits leave units
    unspent, ranks grow past them (convention). Then the adapters start afresh.

    Scores in the trace: each site's share of the sum of what ranks are in proportion to.
    """

    name = "fisher"
    source = "proposals of 2026: axolotl pull request 3639, PEFT issue 3203"
    decides = ("before training",)
    actions: ClassVar[tuple[Action, ...]] = ("redistribute ranks", "restart adapters")
    signals = frozenset({Signal.DELTA_GRADIENT})
    Config: ClassVar[type] = FisherConfig
    state_names = ("sums",)
    sums: dict[str, Tensor]

    def statistic(self, gradient: Tensor) -> Tensor:
        """Returns what is averaged over batches, of a batch's gradient, (d_out, d_in)."""
        return gradient.square().mean()

    def weights(self, sites: Mapping[str, Site], means: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns what the ranks are in proportion to."""
        return {name: float(means[name]) for name in sites}

    def start_of(self, site: Site, rank: int, mean: Tensor, view: StepView) -> dict[str, Tensor]:
        """Returns the site's initial values; without any, A is random and B zero."""
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
        most = {s.name: min(s.max_rank, round(self.config.most * uniform[s.name])) for s in shapes}
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
