"""IncreLoRA: start at rank 1 and let the most sensitive sites grow until the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftprune.errors import UsageError
from peftprune.methods.adalora import check_numbers
from peftprune.methods.published_settings import INCRELORA
from peftprune.methods.svd_components import INITIAL_STD, new_components
from peftprune.scoring import PenaltyForm, SmoothedSensitivity, orthogonality
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase, resolve_phases
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import LiveTensors, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class IncreLoRAConfig:
    """Options of IncreLoRA.

    Attributes:
        top_h: sites that grow in a round, at least 1. 5 in the authors' script for RTE; others have 2 to 13.
        units: components that a site grows by; 0 takes half of the mean rank that the budget pays for, at least 1, as
            the authors' code does.
        warmup: share of the run before the first round, in [0, 1). 0.05 is a convention of ours; the authors' scripts
            set steps for each task, 3 % of the run for RTE.
        final: share of the run after the last round, in [0, 1). 0.5 is a convention of ours. The authors' scripts fix
            the steps between rounds instead, with which RTE at mean rank 2 stops growing after 38 % of its run.
        advance: keep the next components of every site in reserve, where the penalty trains them before their time.
        beta1: decay of the averaged sensitivity, in (0, 1). 0.85 in the authors' scripts.
        beta2: decay of its averaged uncertainty, in (0, 1). 0.85 in the authors' scripts.
        penalty: weight of the orthogonality penalty, at least 0. 0.1 in the authors' scripts for large tasks, 0.3 for
            RTE and STS-B.
        penalty_form: "norm" is the mean of the norms, as in the authors' code; "square" the sum of their squares.
    """

    top_h: int = option(5, "authors' code", "sites that grow in a round")
    units: int = option(0, "authors' code", "components a site grows by; 0 takes half of the budget's mean rank")
    warmup: float = option(0.05, "convention of ours", "share of the run before the first round")
    final: float = option(0.5, "convention of ours", "share of the run after the last round")
    advance: bool = option(True, "authors' code", "train the next components' directions in reserve")
    beta1: float = option(0.85, "authors' code", "decay of the averaged sensitivity")
    beta2: float = option(0.85, "authors' code", "decay of its averaged uncertainty")
    penalty: float = option(0.1, "authors' code", "weight of the orthogonality penalty")
    penalty_form: PenaltyForm = option("norm", "authors' code", "'norm' (mean) or 'square' (sum)")

    def __post_init__(self) -> None:
        check_numbers("increlora", vars(self))
        for name, least in (("top_h", 1), ("units", 0)):
            value = getattr(self, name)
            check_option(value >= least, "increlora", name, value, f"is below {least}", f"Give {least} or more")
        check_option(
            self.penalty_form in ("norm", "square"),
            "increlora", "penalty_form", self.penalty_form, "is unknown", 'Use "norm" or "square"',
        )  # fmt: skip


class IncreLoRA(RankPruningStrategy):
    """Every site starts with one component; in rounds the top_h highest-scoring sites grow, until the budget is spent.

    Components, penalty and initial values are AdaLoRA's. A site's score is Ī · U of its sensitivity, smoothed as in
    AdaLoRA but as one number, from the weights before the optimizer step (authors' code). In the authors' code that
    number is the sum of |ΔW · ∇ΔW| over the entries of ΔW over √(d_in d_out). Here it is the sum of |gate · ∇gate| over
    the components: what the loss would change to first order without the component, for which neither ΔW nor its
    gradient, d_out × d_in numbers a site, need be formed (a convention of ours).

    With `advance`, each site keeps its next components in reserve: their gates are 0 and get no gradient, so that they
    add nothing, while the penalty makes their directions orthogonal to the others' (the authors' code has gates of
    1e-5 there, not trained). A site that grows takes components out of the reserve, which is filled up again. The
    reserve counts in the peak and is removed with the last round.

    Rounds are spread evenly between the warm-up and the final phase, as many as growing by top_h sites a round needs at
    the sites' mean cost; the last one spends what is left, going down the scores again and again (conventions of ours).
    Sites that are full, or cost more than is left, are passed over.

    All components follow the run's learning rate, as in the authors' code for the larger tasks; its scripts for CoLA,
    MRPC and RTE also set `multi_lr`, with which what is added warms up anew on a schedule of its own, and that is not
    offered here. The scaling is the run's and stays (a convention of ours), where the authors' code divides alpha by
    the site's current rank. Under `budget="paper"` the mean rank is 8 and each GLUE task but STS-B is trained as in
    the authors' code.

    The trace holds each site's share of the sum of the sites' scores.

    Source: Zhang et al., 2023, arXiv 2308.12043; code FeiyuZhang98/IncreLoRA.
    """

    name: ClassVar[str] = "increlora"
    source: ClassVar[str] = "Zhang et al., 2023, arXiv 2308.12043"
    Config: ClassVar[type] = IncreLoRAConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sensitivity = SmoothedSensitivity(self.config.beta1, self.config.beta2)
        self.active: dict[str, int] = {}
        """Components that are not in reserve, by site; they come first."""

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        rounds, steps = self._rounds(sites, budget), self._growth_steps(budget)
        if rounds > steps:
            raise UsageError.of(
                "increlora.top_h",
                self.config.top_h,
                f"needs {rounds} rounds to spend the budget, and there are {steps} steps between warmup and final",
                "Raise top_h or units, or train for more steps",
            )
        reserve = self._units(sites, budget) if self.config.advance else 0
        return AdapterSpec(
            ranks={s.name: min(1 + reserve, s.max_rank) for s in sites},
            final_ranks=budget.solve(sites),
            decided_in_training=True,
            gate="rank",
            gate_init=0.0,
            initial_std={"A": INITIAL_STD, "B": INITIAL_STD},
        )

    def phases(self, budget: ArmBudget) -> list[Phase]:
        phases = [Phase("first", share=self.config.warmup), Phase("growth"), Phase("final", share=self.config.final)]
        return [p for p in phases if p.share != 0]

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, per_task=INCRELORA)

    def _growth_steps(self, budget: ArmBudget) -> int:
        phases = resolve_phases(
            self.phases(budget),
            total_steps=budget.total_steps,
            num_examples=budget.num_examples,
            batch_size=budget.batch_size,
        )
        return next(phase.steps for phase in phases if phase.name == "growth")

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

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor | None:
        if self.config.penalty == 0 or not sites:
            return None
        return self.config.penalty * orthogonality(sites, self.config.penalty_form)

    def observe(self, view: StepView) -> None:
        if view.phase.name == "final":
            return
        for name, site in view.sites.items():
            if site.gate is not None and site.grad_gate is not None:
                self.sensitivity.add(name, (site.gate.double() * site.grad_gate.double()).abs().sum())

    def decide(self, view: StepView) -> PruningPlan:
        phase = view.phase
        if phase.name != "growth" or view.step == phase.stop:
            return PruningPlan()
        shapes = [site.shape for site in view.sites.values()]
        rounds, done = self._rounds(shapes, view.budget), view.step - phase.start
        # The round of this step is one that the step before had not reached.
        due = done * rounds // phase.steps > (done - 1) * rounds // phase.steps
        return self._grow(view, last=False) if due else PruningPlan()

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "growth":
            return PruningPlan()
        plan = self._grow(view, last=True)
        self.sensitivity = SmoothedSensitivity(self.config.beta1, self.config.beta2)
        return plan

    def scores(self, names: Sequence[str]) -> dict[str, float]:
        """Site to its score, at least 0."""
        return {n: float(self.sensitivity.score(n)) if n in self.sensitivity.mean else 0.0 for n in names}

    def _grow(self, view: StepView, *, last: bool) -> PruningPlan:
        sites, scores = view.sites, self.scores(list(view.sites))
        order = sorted(scores, key=lambda n: -scores[n])
        units = self._units([site.shape for site in sites.values()], view.budget)
        active = dict(self.active)
        left = view.budget.params - sum(active[n] * sites[n].unit_cost for n in active)
        grown, going_on = 0, True
        while going_on:
            going_on = False
            for name in order:
                extra = min(units, sites[name].max_rank - active[name], left // sites[name].unit_cost)
                if extra > 0 and (last or grown < self.config.top_h):
                    active[name] += extra
                    left -= extra * sites[name].unit_cost
                    grown, going_on = grown + 1, last
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

    def state_dict(self) -> dict[str, Any]:
        return {"sensitivity": self.sensitivity.state_dict(), "active": dict(self.active)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sensitivity.load_state_dict(state["sensitivity"])
        self.active = dict(state["active"])
