"""ElaLoRA: in every round the weakest components go and the sites of the strongest grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftprune.errors import UsageError
from peftprune.methods.adalora import check_numbers
from peftprune.methods.svd_components import INITIAL_STD, new_components, share_of_scores
from peftprune.scoring import PenaltyForm, TripletSensitivity, cubic_fade, orthogonality, units_that_fit
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase, PhaseRange, resolve_phases
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import LiveTensors, SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView


@dataclass(frozen=True)
class ElaLoRAConfig:
    """Options of ElaLoRA.

    Attributes:
        exchanged: components that go, and come, in the first round (b), at least 1. 4 in the authors' scripts.
        candidates: components of each site that may go in one round (k), at least 1. 2 in the authors' scripts.
        warmup: share of the run before the first round, in [0, 1). 0.1 is a convention of ours; the authors' scripts
            set steps for each task, 15 % of the run for RTE and 8 % for MNLI.
        final: share of the run after the last round, in [0, 1). 0.25 is a convention of ours; the authors' scripts
            have 25 % for RTE and 16 % for MNLI.
        every: steps between rounds; 0 takes a twentieth of the steps between warmup and final, so that runs of any
            length have rounds (a convention of ours). The authors' scripts set steps for each task: 50 for RTE, which
            makes 23 rounds, 100 for CoLA (17), 500 for MNLI (9).
        fade: whether b falls to 0 by the cubic rule, as in the authors' scripts.
        beta1: decay of the averaged sensitivity, in (0, 1). 0.85 is the default in the authors' code.
        beta2: decay of its averaged uncertainty, in (0, 1). 0.85, likewise.
        penalty: weight of the orthogonality penalty, at least 0. 0.1 is the default in the authors' code.
        penalty_form: "norm" is the mean of the norms, as in the authors' code; "square" the sum of their squares.
    """

    exchanged: int = option(4, "authors' code", "components that go and come in the first round")
    candidates: int = option(2, "authors' code", "components of each site that may go in one round")
    warmup: float = option(0.1, "convention of ours", "share of the run before the first round")
    final: float = option(0.25, "convention of ours", "share of the run after the last round")
    every: int = option(0, "convention of ours", "steps between rounds; 0 makes about 20 rounds")
    fade: bool = option(True, "authors' code", "whether the exchange falls to 0 by the cubic rule")
    beta1: float = option(0.85, "authors' code", "decay of the averaged sensitivity")
    beta2: float = option(0.85, "authors' code", "decay of its averaged uncertainty")
    penalty: float = option(0.1, "authors' code", "weight of the orthogonality penalty")
    penalty_form: PenaltyForm = option("norm", "authors' code", "'norm' (mean) or 'square' (sum)")

    def __post_init__(self) -> None:
        check_numbers("elalora", {name: value for name, value in vars(self).items() if name != "every"})
        for name, least in (("exchanged", 1), ("candidates", 1), ("every", 0)):
            value = getattr(self, name)
            check_option(value >= least, "elalora", name, value, f"is below {least}", f"Give {least} or more")
        check_option(
            self.penalty_form in ("norm", "square"),
            "elalora", "penalty_form", self.penalty_form, "is unknown", 'Use "norm" or "square"',
        )  # fmt: skip


class ElaLoRA(RankPruningStrategy):
    """Start at the budget; every round the b weakest components are cut out and b new ones join the strongest sites.

    Components, penalty and initial values are AdaLoRA's, and so are the scores. Between a warm-up and a final phase,
    scores are kept up, and every few steps each site names its k lowest components, all but one of them at most. The b
    lowest of all that were named are cut out physically; each of the b highest has its site grow by one component
    (authors' code). b falls to 0 by the cubic rule b · (1 − progress³) (authors' code). New rows of A and columns of B
    are random directions, orthogonal to the old ones and of length 1; their averages start at 0 (authors' code). Their
    gate starts at 0, where the authors' code has at most 1e-13.

    Conventions of ours: of equal scores the earlier site and lower index go first and grow last; where few components
    are named, b is at most half of them, so that none both goes and grows; what went is spent in parameters, not in
    ranks, down the list of what was named, sites being passed over that are full or cost more than is left. With sites
    of one shape that is one new component for each that went.

    The trace holds each site's share of the sum of all components' scores, before the round.

    Source: Chang et al., 2025, arXiv 2504.00254; its authors' project code in a public copy (Dr-rer-nat-Who/meh).
    """

    name: ClassVar[str] = "elalora"
    source: ClassVar[str] = "Chang et al., 2025, arXiv 2504.00254"
    Config: ClassVar[type] = ElaLoRAConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.sensitivity = TripletSensitivity(self.config.beta1, self.config.beta2)

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        phases = resolve_phases(
            self.phases(budget),
            total_steps=budget.total_steps,
            num_examples=budget.num_examples,
            batch_size=budget.batch_size,
        )
        exchange = next(phase for phase in phases if phase.name == "exchange")
        every = self._every(exchange)
        if (exchange.stop - 1) // every * every <= exchange.start:
            raise UsageError.of(
                "elalora.every",
                self.config.every,
                f"has no round between warmup and final, steps {exchange.start + 1} to {exchange.stop - 1}",
                "Lower it, or train for more steps",
            )
        return AdapterSpec(
            ranks=budget.solve(sites),
            decided_in_training=True,
            gate="rank",
            gate_init=0.0,
            initial_std={"A": INITIAL_STD, "B": INITIAL_STD},
        )

    def phases(self, budget: ArmBudget) -> list[Phase]:
        phases = [
            Phase("full", share=self.config.warmup),
            Phase("exchange"),
            Phase("final", share=self.config.final),
        ]
        return [p for p in phases if p.share != 0]

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor | None:
        if self.config.penalty == 0 or not sites:
            return None
        return self.config.penalty * orthogonality(sites, self.config.penalty_form)

    def decide(self, view: StepView) -> PruningPlan:
        phase = view.phase
        # The last step of the phase belongs to the final one, where b is 0.
        if phase.name != "exchange" or view.step == phase.stop:
            return PruningPlan()
        self.sensitivity.update(view.sites)
        exchanged = self.config.exchanged
        if self.config.fade:
            progress = (view.step - phase.start) / (phase.stop - phase.start)
            exchanged = round(cubic_fade(exchanged, progress))
        if view.step % self._every(phase) or exchanged == 0:
            return PruningPlan()
        return self._exchange(view, exchanged)

    def _every(self, exchange: PhaseRange) -> int:
        return self.config.every or max(1, exchange.steps // 20)

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name == "exchange":
            # Nothing is scored any more.
            self.sensitivity = TripletSensitivity(self.config.beta1, self.config.beta2)
        return PruningPlan()

    def scores(self, view: StepView) -> dict[str, Tensor]:
        """Site to the (rank,) scores of its components."""
        return {name: self.sensitivity.scores(site) for name, site in view.sites.items() if site.rank}

    def _exchange(self, view: StepView, exchanged: int) -> PruningPlan:
        scores = self.scores(view)
        named = self._named(scores)
        exchanged = min(exchanged, len(named) // 2)
        going: dict[str, set[int]] = {}
        for name, index, _ in named[:exchanged]:
            going.setdefault(name, set()).add(index)
        kept = {n: [i for i in range(s.rank) if i not in going.get(n, ())] for n, s in view.sites.items() if s.rank}
        grow = self._growth(view, kept, [name for name, _, _ in reversed(named)])
        for name, indices in kept.items():
            if name in going:
                self.sensitivity.keep(name, indices)
            if name in grow:
                self.sensitivity.grow(name, grow[name])
        return PruningPlan(
            keep={name: kept[name] for name in going},
            grow=grow,
            assign={
                n: new_components(view.sites[n], kept[n], extra, view.rng, orthonormal=True)
                for n, extra in grow.items()
            },
            scores=share_of_scores(scores),
            reason=f"{exchanged} components went, {sum(grow.values())} came",
        )

    def _named(self, scores: Mapping[str, Tensor]) -> list[tuple[str, int, float]]:
        """Each site's lowest components as (site, index, score), in ascending score."""
        found = []
        for name, values in scores.items():
            count = min(self.config.candidates, len(values) - 1)
            order = torch.sort(values, stable=True).indices[:count]
            found += list(zip([name] * count, order.tolist(), values[order].tolist(), strict=True))
        return sorted(found, key=lambda entry: entry[2])

    @staticmethod
    def _growth(view: StepView, kept: Mapping[str, Sequence[int]], strongest: Sequence[str]) -> dict[str, int]:
        """Site to new components: one for each of the strongest named, as long as the budget pays."""
        sites = view.sites
        before = {name: len(indices) for name, indices in kept.items()}
        ranks = dict(before)
        left = view.budget.params - sum(rank * sites[n].unit_cost for n, rank in ranks.items())
        for name in strongest:
            if sites[name].unit_cost <= left and ranks[name] < sites[name].max_rank:
                ranks[name] += 1
                left -= sites[name].unit_cost
        costs, caps = {n: sites[n].unit_cost for n in ranks}, {n: sites[n].max_rank for n in ranks}
        for name, extra in units_that_fit(ranks, costs, caps, view.budget.params).items():
            ranks[name] += extra
        return {name: rank - before[name] for name, rank in ranks.items() if rank > before[name]}

    def state_dict(self) -> dict[str, Any]:
        return {"sensitivity": self.sensitivity.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sensitivity.load_state_dict(state["sensitivity"])
