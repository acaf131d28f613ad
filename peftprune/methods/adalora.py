"""AdaLoRA: triplets of gate, row of A and column of B compete over all sites for a falling budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from peftprune.errors import UsageError
from peftprune.methods.published_settings import ADALORA
from peftprune.methods.svd_components import INITIAL_STD, new_components, share_of_scores
from peftprune.scoring import (
    PenaltyForm,
    TripletSensitivity,
    cubic_decay,
    keep_top_global,
    orthogonality,
    units_that_fit,
)
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import LiveTensors, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class AdaLoRAConfig:
    """Options of AdaLoRA.

    Attributes:
        initial_ratio: parameters at the start, as a multiple of the budget, at least 1. 1.5 is a convention of ours,
            and what PEFT's defaults (12 and 8) amount to; the authors' GLUE scripts start at twice or three times.
        warmup: share of the run before anything is pruned (t_i), in [0, 1). 0.1 is a convention of ours; the authors'
            scripts set steps for each task, 9 % of the run for MNLI and 15 % for RTE.
        final: share of the run after the last decision (t_f), in [0, 1). 0.5 is a convention of ours; the authors'
            scripts have 58 % for MNLI and 46 % for RTE.
        every: steps between decisions (ΔT), at least 1. 10 is a convention of ours; the authors' scripts have 1 to 100.
        beta1: decay of the averaged sensitivity, in (0, 1). 0.85 in the authors' code.
        beta2: decay of its averaged uncertainty, in (0, 1). 0.85 in the authors' code.
        penalty: weight of the orthogonality penalty (γ), at least 0. 0.1 in most of the authors' scripts; PEFT has 0.5.
        penalty_form: "norm" is the mean of the norms, as in the authors' code and PEFT; "square" the sum of their
            squares, as in the paper.
        order: "after" scores weights as the optimizer left them with the gradients that led there, as the authors'
            code and PEFT do; "before" takes the weights of before the step, as in the paper's algorithm.
        cut: "final" removes what lost physically when the last decision falls (a convention of ours). "end" keeps it,
            masked, up to the end of training, as the authors' code and PEFT do; it then still counts in the penalty
            and in the norm that gradients are clipped to.
        moments: whether the optimizer's moments of a gate that is set to zero stay, as in the authors' code, or are
            zeroed with it.
        alpha: 0 takes the run's scaling, equal for all methods (a convention of ours). Above 0 the scaling is
            alpha / (initial rank + 1e-5) for good, as in the authors' code and PEFT.
        gate_decay: whether weight decay acts on gates, as in the authors' code and PEFT. False is a convention of ours.
    """

    initial_ratio: float = option(1.5, "convention of ours", "parameters at the start, relative to the budget")
    warmup: float = option(0.1, "convention of ours", "share of the run before anything is pruned")
    final: float = option(0.5, "convention of ours", "share of the run after the last decision")
    every: int = option(10, "convention of ours", "steps between decisions")
    beta1: float = option(0.85, "authors' code", "decay of the averaged sensitivity")
    beta2: float = option(0.85, "authors' code", "decay of its averaged uncertainty")
    penalty: float = option(0.1, "authors' code", "weight of the orthogonality penalty")
    penalty_form: PenaltyForm = option("norm", "authors' code", "'norm' (mean) or 'square' (sum, as in the paper)")
    order: Literal["after", "before"] = option("after", "authors' code", "weights that are scored: after the step")
    cut: Literal["final", "end"] = option("final", "convention of ours", "when the losers go physically")
    moments: Literal["keep", "zero"] = option("keep", "authors' code", "moments of gates that are set to zero")
    alpha: float = option(0.0, "convention of ours", "scaling is alpha / initial rank; 0 takes the run's")
    gate_decay: bool = option(False, "convention of ours", "weight decay on gates")

    def __post_init__(self) -> None:
        check_numbers("adalora", vars(self))
        for name, known in (
            ("penalty_form", ("norm", "square")),
            ("order", ("after", "before")),
            ("cut", ("final", "end")),
            ("moments", ("keep", "zero")),
        ):
            value = getattr(self, name)
            check_option(value in known, "adalora", name, value, "is unknown", f'Use "{known[0]}" or "{known[1]}"')


def check_numbers(method: str, values: Mapping[str, Any]) -> None:
    """Check the numbers that AdaLoRA's schedule and score are made of; `values` may lack some.

    Raises:
        UsageError: for the first that is out of range.
    """
    inf = float("inf")
    at_least = {"initial_ratio": 1, "every": 1, "penalty": 0, "alpha": 0}
    for name, value in values.items():
        if name in at_least:
            least = at_least[name]
            check_option(least <= value < inf, method, name, value, f"is below {least}", f"Give {least} or more")
        elif name in ("warmup", "final"):
            check_option(0 <= value < 1, method, name, value, "is outside [0, 1)", "Give 0.1, for example")
        elif name in ("beta1", "beta2"):
            check_option(0 < value < 1, method, name, value, "is outside (0, 1)", "Give 0.85, for example")
    warmup, final = values["warmup"], values["final"]
    check_option(
        warmup + final < 1,
        method, "final", final, f"leaves no steps for pruning beside warmup={warmup}", "Let the two sum to less than 1",
    )  # fmt: skip


class AdaLoRA(RankPruningStrategy):
    """Start above the budget; rank all components of all sites together; the losers' gates are zeroed, then cut out.

    ΔW = s · B · diag(gate) · A, gates starting at zero and A and B from N(0, 0.02²) (authors' code), with a penalty
    that keeps the rows of A and the columns of B orthonormal; the penalty is part of the training's gradients only,
    never of a loss that is logged or evaluated. The sensitivity |w · ∇w| of every entry is averaged over steps, and so
    is its deviation from that average; an entry's score is their product, a component's is its gate's plus the means
    over its row and its column (stated in the paper). With t_i steps of warm-up and t_f at the end, the budget is the
    initial one at first, then falls by the cubic rule to the final one (stated in the paper). Every ΔT steps the gates
    of the components outside of it are set to zero; they may revive until the last decision. Scores are no longer
    updated at the last decision (authors' code).

    What the paper counts in ranks is counted in parameters here, so that sites of unequal size compete at what they
    cost: components are taken in descending score, one that no longer fits is passed over (a convention of ours; with
    sites of one shape the two are the same). Exactly as many components lose as the budget says, also where scores are
    equal. A site can lose its last component. If one more unit still fits in the end because every component of the
    cheap sites survived, those sites grow by it (a convention of ours).

    Steps, total included, are those of the run itself. Under `budget="paper"` the mean rank is 8, that of the paper's
    larger setting, and each GLUE task is trained as in the authors' code, whose scripts themselves name a target rank
    of 1; schedule and scaling stay options. The trace holds each site's share of the sum of all components'
    scores.

    Source: Zhang et al., ICLR 2023, arXiv 2303.10512; code QingruZhang/AdaLoRA.
    """

    name: ClassVar[str] = "adalora"
    source: ClassVar[str] = "Zhang et al., ICLR 2023"
    Config: ClassVar[type] = AdaLoRAConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sensitivity = TripletSensitivity(self.config.beta1, self.config.beta2)
        self.kept: dict[str, list[int]] = {}

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        ranks = budget.scaled(int(self.config.initial_ratio * budget.params)).solve(sites)
        alpha, groups = self.config.alpha, dict(AdapterSpec(ranks={}).groups)
        if self.config.gate_decay:
            groups["gate"] = ParameterGroup()
        return AdapterSpec(
            ranks=ranks,
            final_ranks=budget.solve(sites),
            decided_in_training=True,
            gate="rank",
            gate_init=0.0,
            scaling=alpha / (sum(ranks.values()) / len(ranks) + 1e-5) if alpha else None,
            initial_std={"A": INITIAL_STD, "B": INITIAL_STD},
            groups=groups,
        )

    def phases(self, budget: ArmBudget) -> list[Phase]:
        warmup, final = self.config.warmup, self.config.final
        if round((1 - final) * budget.total_steps) < 2:
            raise UsageError.of(
                "adalora.final",
                final,
                f"leaves no step to score components in, out of {budget.total_steps}",
                "Train for more steps, or lower final",
            )
        phases = [Phase("full", share=warmup), Phase("pruning"), Phase("final", share=final)]
        return [p for p in phases if p.share != 0]

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, per_task=ADALORA)

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor | None:
        if self.config.penalty == 0 or not sites:
            return None
        return self.config.penalty * orthogonality(sites, self.config.penalty_form)

    def observe(self, view: StepView) -> None:
        if self.config.order == "before":
            self._score(view)

    def decide(self, view: StepView) -> PruningPlan:
        if self.config.order == "after":
            self._score(view)
        phase = view.phase
        if phase.name == "final":
            # What lost is still there only where the cut waits for the end.
            return self._mask(view, self.kept, "held the last decision") if self.kept else PruningPlan()
        if phase.name == "full" or view.step == phase.stop or view.step % self.config.every:
            return PruningPlan()
        scores = self.scores(view)
        initial = sum(site.rank * site.unit_cost for site in view.sites.values())
        progress = (view.step - phase.start) / (phase.stop - phase.start)
        limit = cubic_decay(initial, view.budget.params, progress)
        plan = self._mask(view, self._best(view, scores, limit), "masked to the budget of this step")
        return replace(plan, scores=share_of_scores(scores))

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name == "pruning":
            scores = self.scores(view)
            self.kept = self._best(view, scores, view.budget.params)
            self.sensitivity = TripletSensitivity(self.config.beta1, self.config.beta2)
            wait = self.config.cut == "end" and self.config.final > 0
            plan = self._mask(view, self.kept, "last decision") if wait else self._cut(view)
            return replace(plan, scores=share_of_scores(scores))
        return self._cut(view) if view.phase.name == "final" and self.kept else PruningPlan()

    def scores(self, view: StepView) -> dict[str, Tensor]:
        """Site to the (rank,) scores of its components."""
        return {name: self.sensitivity.scores(site) for name, site in view.sites.items() if site.rank}

    def _score(self, view: StepView) -> None:
        decided = view.phase.name == "final" or (view.phase.name == "pruning" and view.step == view.phase.stop)
        if not decided:
            self.sensitivity.update(view.sites)

    def _best(self, view: StepView, scores: Mapping[str, Tensor], params: float) -> dict[str, list[int]]:
        return keep_top_global(scores, {n: view.sites[n].unit_cost for n in scores}, int(params))

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
        costs, caps = {n: sites[n].unit_cost for n in kept}, {n: sites[n].max_rank for n in kept}
        grow = units_that_fit(ranks, costs, caps, view.budget.params)
        return PruningPlan(
            keep={name: indices for name, indices in kept.items() if len(indices) < sites[name].rank},
            grow=grow,
            assign={name: new_components(sites[name], kept[name], extra, view.rng) for name, extra in grow.items()},
            reason=f"cut to the budget: {sum(ranks.values())} of {sum(s.rank for s in sites.values())} components",
        )

    def state_dict(self) -> dict[str, Any]:
        return {"sensitivity": self.sensitivity.state_dict(), "kept": dict(self.kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sensitivity.load_state_dict(state["sensitivity"])
        self.kept = dict(state["kept"])
