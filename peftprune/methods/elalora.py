from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from peftprune import scoring
from peftprune.errors import UsageError
from peftprune.methods.global_cut import units_left
from peftprune.methods.published_settings import published_runs
from peftprune.methods.svd_components import SVDStrategy, gated_spec, new_components, share_of_scores
from peftprune.strategy import ArmBudget, Options, PhaseRange, PruningPlan, Site, SiteShape, StepView, option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.spec import AdapterSpec, PaperSettings


@dataclass(frozen=True)
class ElaLoRAConfig(Options):
    exchanged: int = option(4, "authors' code", ge=1, help="components that are cut, and added, in the first round (b)")
    candidates: int = option(2, "authors' code", ge=1, help="components of each site that may be cut in one round (k)")
    warmup: float = option(0.1, "convention", ge=0, lt=1, help=
        "share of the run before the first round; the authors' scripts set steps per task, 15 % of the run for RTE and "
        "8 % for MNLI")  # fmt: skip
    final: float = option(0.25, "convention", ge=0, lt=1, help=
        "share of the run after the last round; 25 % for RTE and 16 % for MNLI in the authors' scripts")  # fmt: skip
    every: int = option(0, "convention", ge=0, help=
        "steps between rounds; 0 takes a twentieth of the steps between warmup and final, so that runs of any length "
        "have rounds. The authors' scripts set steps per task: 50 for RTE (23 rounds), 100 for CoLA (17), 500 for MNLI "
        "(9)")  # fmt: skip
    fade: bool = option(True, "authors' code", help="b falls to 0 by the cubic rule")
    beta1: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of the averaged sensitivity")
    beta2: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of its averaged uncertainty")
    penalty: float = option(0.1, "authors' code", ge=0, help="weight of the orthogonality penalty")
    penalty_form: str = option("norm", "authors' code", choices=("norm", "square"), help=
        "'norm' is the mean of the norms, 'square' the sum of their squares")  # fmt: skip


class ElaLoRA(SVDStrategy):
    """Starts at the budget; every round cuts out the b weakest components and adds b new ones at the strongest sites.

    Components, penalty, initial values and scores are AdaLoRA's. Scores are updated from the first step to the final
    phase (authors' code). Every few steps after the warm-up each site nominates its k lowest components, but never all
    of them. The b lowest of all nominated components are cut out physically; for each of the b highest, its site grows
    by one component (authors' code). b falls to 0 by the cubic rule b · (1 − progress³) (authors' code). New rows of A
    and columns of B are random directions of length 1, orthogonal to the existing ones, and their averages start at 0
    (authors' code). Their gates start at 0; in the authors' code at 1e-13 at most. The authors' trainer rebuilds the
    optimizer in every round, which loses all moments and detaches the schedule: the rate then stays at its peak. Here
    moments and schedule are kept.

    Conventions: of equal scores the earlier site and lower index are cut first and grow last. Where few components are
    nominated, b is at most half of them, so that no component is both cut and a reason to grow. What is cut is spent
    again in parameters, not in ranks: sites grow in descending order of the nominations, and sites that are full or
    cost more than is left are skipped. With sites of one shape one new component replaces each one that was cut.

    Under `budget="paper"` GLUE on DeBERTaV3-base and XSum on BART-base are trained as in the authors' scripts.

    Scores in the trace: each site's share of the sum of all components' scores, before the round.
    """

    name = "elalora"
    revision = 1
    source = "Chang et al., 2025, arXiv 2504.00254; code HuandongChang/ElaLoRA"
    decides = ("repeatedly",)
    actions = ("cut ranks", "redistribute ranks", "grow ranks", "set values")
    Config: ClassVar[type] = ElaLoRAConfig
    phase_names = ("full", "exchange")

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        exchange = self.ranges(budget)["exchange"]
        every = self._every(exchange)
        if exchange.steps <= every:
            problem = f"has no round between warmup and final, steps {exchange.start + 1} to {exchange.stop - 1}"
            cure = "Lower it, or train for more steps"
            raise UsageError.of(f"{self.name}.every", self.config.every, problem, cure)
        return gated_spec(budget.solve(sites))

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=10, runs=published_runs("elalora"))

    def decide(self, view: StepView) -> PruningPlan:
        phase = view.phase
        # At the last step of the phase b is 0.
        last = phase.name == "exchange" and view.step == phase.stop
        if phase.name == "final" or last:
            return PruningPlan()
        self.learn(view)
        if phase.name == "full":
            return PruningPlan()
        exchanged = self.config.exchanged
        if self.config.fade:
            progress = (view.step - phase.start) / (phase.stop - phase.start)
            exchanged = round(scoring.cubic_fade(exchanged, progress))
        if (view.step - phase.start) % self._every(phase) or exchanged == 0:
            return PruningPlan()
        return self._exchange(view, exchanged)

    def learn(self, view: StepView) -> None:
        """Takes in the weights and gradients of a step."""
        self.sensitivity.update(view.sites)

    def _every(self, exchange: PhaseRange) -> int:
        return self.config.every or max(1, exchange.steps // 20)

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name == "exchange":
            # The final phase needs no scores.
            self.sensitivity = self.new_sensitivity()
        return PruningPlan()

    def _exchange(self, view: StepView, exchanged: int) -> PruningPlan:
        going, strongest, scores = self.choose(view, exchanged)
        cut: dict[str, set[int]] = {}
        for name, index in going:
            cut.setdefault(name, set()).add(index)
        kept = {n: [i for i in range(s.rank) if i not in cut.get(n, ())] for n, s in view.sites.items() if s.rank}
        grow = self._growth(view, kept, strongest)
        for name, indices in kept.items():
            if name in cut:
                self.sensitivity.keep(name, indices)
            if name in grow:
                self.sensitivity.grow(name, grow[name])
        return PruningPlan(
            keep={name: kept[name] for name in cut},
            grow=grow,
            assign={n: self.enlarged(view.sites[n], kept[n], extra, view.rng) for n, extra in grow.items()},
            scores=scores,
            reason=f"cut {len(going)} components, added {sum(grow.values())}",
        )

    def choose(self, view: StepView, exchanged: int) -> tuple[list[tuple[str, int]], list[str], dict[str, float]]:
        """Returns the components that go, the sites in the order in which they grow, and scores for the trace."""
        scores = self.scores(view)
        nominated = self._nominated(scores)
        going = [(name, index) for name, index, _ in nominated[: min(exchanged, len(nominated) // 2)]]
        return going, [name for name, _, _ in reversed(nominated)], share_of_scores(scores)

    def enlarged(self, site: Site, kept: Sequence[int], extra: int, rng: "torch.Generator") -> dict[str, Tensor]:
        """Returns the tensors of a site that keeps some components and gets `extra` new ones."""
        return new_components(site, kept, extra, rng, orthonormal=True)

    def _nominated(self, scores: Mapping[str, Tensor]) -> list[tuple[str, int, float]]:
        """Returns each site's lowest components as (site, index, score), in ascending score."""
        found = []
        for name, values in scores.items():
            count = min(self.config.candidates, len(values) - 1)
            order = torch.sort(values, stable=True).indices[:count]
            found += list(zip([name] * count, order.tolist(), values[order].tolist(), strict=True))
        return sorted(found, key=lambda entry: entry[2])

    @staticmethod
    def _growth(view: StepView, kept: Mapping[str, Sequence[int]], strongest: Sequence[str]) -> dict[str, int]:
        """Returns site to new components: one for each of the strongest nominations, while the budget pays for them."""
        sites = view.sites
        before = {name: len(indices) for name, indices in kept.items()}
        ranks = dict(before)
        left = view.budget.params - sum(rank * sites[n].unit_cost for n, rank in ranks.items())
        for name in strongest:
            if sites[name].unit_cost <= left and ranks[name] < sites[name].max_rank:
                ranks[name] += 1
                left -= sites[name].unit_cost
        for name, extra in units_left(ranks, view).items():
            ranks[name] += extra
        return {name: rank - before[name] for name, rank in ranks.items() if rank > before[name]}
