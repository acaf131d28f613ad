import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftprune import scoring
from peftprune.errors import UsageError
from peftprune.methods.published_settings import published_runs
from peftprune.methods.svd_components import SVDStrategy, gated_spec, new_components
from peftprune.strategy import AdapterSpec, ArmBudget, Options, PaperSettings, PruningPlan, Signal, SiteShape, option
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class IncreLoRAConfig(Options):
    top_h: int = option(5, "authors' code", ge=1, help=
        "sites that grow in a round, as in the script for RTE; the others have 2 to 13")  # fmt: skip
    units: int = option(0, "authors' code", ge=0, help=
        "components that a site grows by; 0 takes half of the budget's mean rank, but at least 1")  # fmt: skip
    warmup: float = option(0.05, "convention", ge=0, lt=1, help=
        "share of the run before the first round; the authors' scripts set steps per task, 3 % of the run for "
        "RTE")  # fmt: skip
    final: float = option(0.5, "convention", ge=0, lt=1, help=
        "share of the run after the last round; the authors' scripts fix the steps between rounds instead, and RTE at "
        "mean rank 2 stops growing after 38 % of its run")  # fmt: skip
    advance: bool = option(True, "authors' code", help=
        "keep the next components of every site in reserve, where the penalty trains them in advance")  # fmt: skip
    score: str = option("components", "convention", later=True, choices=("components", "dense"), help=
        "sensitivity of a site: 'components' sums |gate · ∇gate| over its components, 'dense' is the released "
        "Σ |ΔW · ∇ΔW| / √(d_in d_out), which needs ∇ΔW, d_out × d_in numbers per site and step")  # fmt: skip
    beta1: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of the averaged sensitivity")
    beta2: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of its averaged uncertainty")
    penalty: float = option(0.1, "authors' code", ge=0, help=
        "weight of the orthogonality penalty, as in the scripts for large tasks; 0.3 for RTE and STS-B")  # fmt: skip
    penalty_form: str = option("norm", "authors' code", choices=("norm", "square"), help=
        "'norm' is the mean of the norms, 'square' the sum of their squares")  # fmt: skip


class IncreLoRA(SVDStrategy):
    """Starts every site at rank 1; in rounds the top_h highest-scoring sites grow until the budget is spent.

    Components, penalty and initial values are AdaLoRA's. The score of a site is the product Ī · U of its sensitivity
    and the sensitivity's uncertainty, smoothed as in AdaLoRA but as one number per site, from the weights before the
    optimizer step (authors' code). In the authors' code that number is the sum of |ΔW · ∇ΔW| over the entries of ΔW,
    divided by √(d_in d_out), which `score="dense"` follows. By default it is the sum of |gate · ∇gate| over the
    components: the first-order change of the loss without the component, which needs no ∇ΔW (convention). The two rank
    sites alike but not equally.

    With `advance`, each site keeps its next components in reserve. Their gates are 0 and get no gradient, so they add
    nothing, while the penalty makes their directions orthogonal to the others' (in the authors' code their gates are
    1e-5 and not trained). A site grows by components from its reserve, which is then refilled. The reserve counts in
    the peak parameters and is removed at the last round.

    Rounds are spread evenly between warm-up and final phase; their number is what growing top_h sites per round needs
    at the sites' mean cost. The last round spends what is left, repeatedly in descending score. Both are conventions.
    Sites that are full or cost more than is left are skipped.

    All components follow the run's learning rate, as in the authors' code for the larger tasks; its scripts for CoLA,
    MRPC and RTE set `multi_lr`, which gives new components a warm-up and schedule of their own and is not offered here.
    The scaling is the run's and constant (convention); the authors' code divides alpha by the site's current rank.
    Under `budget="paper"` each GLUE task is trained as in the authors' code, at mean rank 8, and STS-B at 2.

    Scores in the trace: each site's share of the sum of the sites' scores.
    """

    name = "increlora"
    source = "Zhang et al., 2023, arXiv 2308.12043; code FeiyuZhang98/IncreLoRA"
    decides = ("repeatedly",)
    actions = ("cut ranks", "redistribute ranks", "grow ranks", "set values")
    Config = IncreLoRAConfig
    state_names = ("active",)
    active: dict[str, int]
    """Site to its components outside the reserve; they come first."""
    phase_names = ("first", "growth")

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        if self.config.score == "dense":
            self.signals = frozenset({Signal.DELTA_GRADIENT})  # type: ignore[misc]

    def new_sensitivity(self) -> scoring.SmoothedSensitivity:
        return scoring.SmoothedSensitivity(self.config.beta1, self.config.beta2)

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        rounds, steps = self._rounds(sites, budget), self.ranges(budget)["growth"].steps
        if rounds > steps:
            problem = f"needs {rounds} rounds to spend the budget, and there are {steps} steps between warmup and final"
            cure = "Raise top_h or units, or train for more steps"
            raise UsageError.of("increlora.top_h", self.config.top_h, problem, cure)
        reserve = self._units(sites, budget) if self.config.advance else 0
        ranks = {s.name: min(1 + reserve, s.max_rank) for s in sites}
        return gated_spec(ranks, budget.solve(sites))

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, runs=published_runs("increlora"))

    def _units(self, sites: Sequence[SiteShape], budget: ArmBudget) -> int:
        mean_rank = budget.params / sum(s.unit_cost for s in sites)
        return self.config.units or max(1, int(mean_rank / 2))

    def _rounds(self, sites: Sequence[SiteShape], budget: ArmBudget) -> int:
        costs = [s.unit_cost for s in sites]
        grown = min(self.config.top_h, len(sites)) * self._units(sites, budget) * sum(costs) / len(costs)
        return max(1, math.ceil((budget.params - sum(costs)) / grown))

    def start(self, view: StepView) -> None:
        self.active = dict.fromkeys(view.sites, 1)

    def before_step(self, view: StepView) -> Mapping[str, Tensor] | None:
        if not self.config.advance or view.phase.name == "final":
            return None
        return {n: (torch.arange(s.rank, device=s.A.device) < self.active[n]).float() for n, s in view.sites.items()}

    def observe(self, view: StepView) -> None:
        if view.phase.name == "final":
            return
        for name, site in view.sites.items():
            if site.gate is None or site.grad_gate is None:
                continue
            if self.config.score == "dense":
                delta = site.scaling * (site.B.float() * site.gate) @ site.A.float()
                found = (delta * view.signals[Signal.DELTA_GRADIENT][name]).abs().sum() / delta.numel() ** 0.5
            else:
                found = (site.gate.double() * site.grad_gate.double()).abs().sum()
            self.sensitivity.add(name, found)

    def decide(self, view: StepView) -> PruningPlan:
        phase = view.phase
        if phase.name != "growth" or view.step == phase.stop:
            return PruningPlan()
        shapes = [site.shape for site in view.sites.values()]
        rounds, done = self._rounds(shapes, view.budget), view.step - phase.start
        # A round is due at the first step at which the number of finished rounds rises.
        due = done * rounds // phase.steps > (done - 1) * rounds // phase.steps
        return self._grow(view, last=False) if due else PruningPlan()

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "growth":
            return PruningPlan()
        plan = self._grow(view, last=True)
        self.sensitivity = self.new_sensitivity()
        return plan

    def scores(self, view: StepView) -> dict[str, float]:
        return {n: float(self.sensitivity.score(n)) if n in self.sensitivity.mean else 0.0 for n in view.sites}

    def _grow(self, view: StepView, *, last: bool) -> PruningPlan:
        sites, scores = view.sites, self.scores(view)
        order = sorted(scores, key=lambda n: -scores[n])
        units = self._units([site.shape for site in sites.values()], view.budget)
        active = dict(self.active)
        left = view.budget.params - sum(active[n] * sites[n].unit_cost for n in active)
        grown, unfinished = 0, True
        while unfinished:
            unfinished = False
            for name in order:
                extra = min(units, sites[name].max_rank - active[name], left // sites[name].unit_cost)
                if extra > 0 and (last or grown < self.config.top_h):
                    active[name] += extra
                    left -= extra * sites[name].unit_cost
                    grown, unfinished = grown + 1, last
        reserve = 0 if last or not self.config.advance else units
        wanted = {n: min(active[n] + reserve, sites[n].max_rank) for n in active}
        self.active = active
        grow = {n: wanted[n] - sites[n].rank for n in wanted if wanted[n] > sites[n].rank}
        total = sum(scores.values())
        return PruningPlan(
            keep={n: range(wanted[n]) for n in wanted if wanted[n] < sites[n].rank},
            grow=grow,
            assign={n: new_components(sites[n], range(sites[n].rank), extra, view.rng) for n, extra in grow.items()},
            scores={n: score / total if total > 0 else 0.0 for n, score in scores.items()},
            reason="grew until the budget was spent" if last else f"grew {grown} sites by up to {units}",
        )
