from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from peftprune import scoring
from peftprune.errors import UsageError
from peftprune.methods.global_cut import keep_within, units_left
from peftprune.methods.published_settings import published_runs
from peftprune.methods.svd_components import SVDStrategy, gated_spec, new_components, share_of_scores
from peftprune.strategy import ArmBudget, Options, Phase, PruningPlan, SiteShape, StepView, option
from peftprune.strategy.lazy import torch
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup


@dataclass(frozen=True)
class AdaLoRAConfig(Options):
    initial_ratio: float = option(1.5, "convention", ge=1, help=
        "parameters at the start as a multiple of the budget; PEFT's defaults (12 and 8) give 1.5, the authors' GLUE "
        "scripts 2 or 3")  # fmt: skip
    warmup: float = option(0.1, "convention", ge=0, lt=1, help=
        "share of the run before anything is pruned (t_i); the authors' scripts set steps per task, 9 % of the run for "
        "MNLI and 15 % for RTE")  # fmt: skip
    final: float = option(0.5, "convention", ge=0, lt=1, help=
        "share of the run after the last decision (t_f); 58 % for MNLI and 46 % for RTE in the authors' "
        "scripts")  # fmt: skip
    every: int = option(10, "convention", ge=1, help="steps between decisions (ΔT); 1 to 100 in the authors' scripts")
    beta1: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of the averaged sensitivity")
    beta2: float = option(0.85, "authors' code", gt=0, lt=1, help="decay of its averaged uncertainty")
    penalty: float = option(0.1, "authors' code", ge=0, help=
        "weight of the orthogonality penalty (γ), as in most of the authors' scripts; PEFT has 0.5")  # fmt: skip
    penalty_form: str = option("norm", "authors' code", choices=("norm", "square"), help=
        "'norm' is the mean of the norms, also in PEFT; 'square' is the sum of their squares (paper)")  # fmt: skip
    order: str = option("after", "authors' code", choices=("after", "before"), help=
        "'after' scores the weights after the optimizer step with the gradients from before it, as PEFT does; 'before' "
        "scores the weights before the step (paper)")  # fmt: skip
    cut: str = option("final", "convention", choices=("final", "end"), help=
        "'final' removes pruned components physically at the last decision; 'end' masks them until training ends, as "
        "the authors' code and PEFT do, and they then still count in the penalty and in the gradient norm for "
        "clipping")  # fmt: skip
    moments: str = option("keep", "authors' code", choices=("keep", "zero"), help=
        "the optimizer's moments of gates that are set to zero are kept or zeroed")  # fmt: skip
    alpha: float = option(0.0, "convention", ge=0, help=
        "0 takes the run's scaling, equal for all methods; above 0 the scaling is alpha / (initial rank + 1e-5) "
        "throughout, as in the authors' code and PEFT")  # fmt: skip
    gate_decay: bool = option(False, "convention", help="weight decay acts on gates, as in the authors' code and PEFT")


class AdaLoRA(SVDStrategy):
    """Starts above the budget; components of all sites compete by sensitivity while the budget decays to its target.

    ΔW = scaling · B · diag(gate) · A, with gates starting at zero and A and B from N(0, 0.02²) (authors' code). A
    penalty keeps the rows of A and the columns of B orthonormal; it enters the gradients only, never a loss that is
    logged or evaluated. The sensitivity |w · ∇w| of every entry is averaged over steps, and so is its deviation from
    that average. The score of an entry is the product of the two; the score of a component is its gate's plus the means
    over its row and its column (paper). The budget keeps its initial value for t_i steps, decays by the cubic rule, and
    keeps its final value for the last t_f steps (paper). Every ΔT steps the gates of the components outside the budget
    are set to zero; they may revive until the last decision. Scores are not updated at the last decision (authors'
    code).

    The paper counts ranks. Here parameters are counted, so that sites of unequal size compete at their cost: components
    are taken in descending score, and one that no longer fits is skipped (convention; with sites of one shape the two
    agree). Exactly as many components are pruned as the budget requires, also where scores are equal. A site can lose
    all of its components. Where every component of the cheapest sites is kept and one more unit fits in the end, those
    sites grow by it (convention).

    The schedule counts the steps of the run itself. Under `budget="paper"` the mean rank is 8, as in the larger of the
    paper's two settings, and each GLUE task is trained as in the authors' scripts, which themselves name a target rank
    of 1; schedule and scaling remain options.

    Scores in the trace: each site's share of the sum of all components' scores.
    """

    name = "adalora"
    source = "Zhang et al., ICLR 2023, arXiv 2303.10512; code QingruZhang/AdaLoRA"
    decides = ("repeatedly",)
    actions = ("cut ranks", "redistribute ranks", "zero entries")
    Config: ClassVar[type] = AdaLoRAConfig
    state_names: ClassVar[tuple[str, ...]] = ("kept",)
    phase_names = ("full", "pruning")
    kept: dict[str, list[int]]

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        ranks = budget.scaled(int(self.config.initial_ratio * budget.params)).solve(sites)
        spec = gated_spec(ranks, budget.solve(sites))
        if self.config.alpha:
            spec = replace(spec, scaling=self.config.alpha / (sum(ranks.values()) / len(ranks) + 1e-5))
        return replace(spec, groups={**spec.groups, "gate": ParameterGroup()}) if self.config.gate_decay else spec

    def phases(self, budget: ArmBudget) -> list[Phase]:
        final = self.config.final
        if round((1 - final) * budget.total_steps) < 2:
            problem = f"leaves no step to score components in, out of {budget.total_steps}"
            raise UsageError.of(f"{self.name}.final", final, problem, "Train for more steps, or lower final")
        return super().phases(budget)

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, runs=published_runs("adalora"))

    def observe(self, view: StepView) -> None:
        if self.config.order == "before":
            self.score(view)

    def decide(self, view: StepView) -> PruningPlan:
        if self.config.order == "after":
            self.score(view)
        phase = view.phase
        if phase.name == "final":
            # Pruned components are still there only with cut="end".
            return self._mask(view, self.kept, "held the last decision") if self.kept else PruningPlan()
        if phase.name == "full" or view.step == phase.stop or view.step % self.config.every:
            return PruningPlan()
        scores = self.scores(view)
        initial = sum(site.rank * site.unit_cost for site in view.sites.values())
        progress = (view.step - phase.start) / (phase.stop - phase.start)
        left = keep_within(scores, view, self.limit(view, initial, progress))
        plan = self._mask(view, left, "masked to the budget of this step")
        return replace(plan, scores=share_of_scores(scores))

    def limit(self, view: StepView, initial: int, progress: float) -> int:
        """Returns the parameters that are left at a progress from 0 to 1."""
        return int(scoring.cubic_decay(initial, view.budget.params, progress))

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name == "pruning":
            scores = self.scores(view)
            self.kept = keep_within(scores, view, view.budget.params)
            self.sensitivity = self.new_sensitivity()
            wait = self.config.cut == "end" and self.config.final > 0
            plan = self._mask(view, self.kept, "last decision") if wait else self._cut(view)
            return replace(plan, scores=share_of_scores(scores))
        return self._cut(view) if view.phase.name == "final" and self.kept else PruningPlan()

    def score(self, view: StepView) -> None:
        """Takes in the weights and gradients of a step before the last decision."""
        decided = view.phase.name == "final" or (view.phase.name == "pruning" and view.step == view.phase.stop)
        if not decided:
            self.sensitivity.update(view.sites)

    def _mask(self, view: StepView, kept: Mapping[str, Sequence[int]], reason: str) -> PruningPlan:
        masks = {}
        for name, indices in kept.items():
            if len(indices) < view.sites[name].rank:
                lost = torch.ones(view.sites[name].rank, dtype=torch.bool, device=view.sites[name].A.device)
                lost[list(indices)] = False
                masks[name] = {"gate": lost}
        return PruningPlan(zero=masks, moments=self.config.moments, reason=reason)

    def _cut(self, view: StepView) -> PruningPlan:
        sites, kept = view.sites, self.kept
        self.kept = {}
        ranks = {name: len(indices) for name, indices in kept.items()}
        grow = units_left(ranks, view)
        return PruningPlan(
            keep={name: indices for name, indices in kept.items() if len(indices) < sites[name].rank},
            grow=grow,
            assign={name: new_components(sites[name], kept[name], extra, view.rng) for name, extra in grow.items()},
            reason=f"cut to the budget: {sum(ranks.values())} of {sum(s.rank for s in sites.values())} components",
        )
