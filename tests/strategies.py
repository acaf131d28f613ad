"""Strategies that exist only for tests: each uses one part of the interface that the built-in methods leave alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftprune.scoring import keep_top
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import LiveTensors, SiteShape
from peftprune.strategy.spec import AdapterSpec, ParameterGroup
from peftprune.strategy.view import StepView


class Warm(RankPruningStrategy):
    """LoRA whose B does not start at zero, so that A has a gradient from the first step on."""

    name: ClassVar[str] = "warm"

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        ranks = budget.solve(sites)
        rng = torch.Generator().manual_seed(7)
        initial = {s.name: {"B": torch.randn(s.d_out, ranks[s.name], generator=rng) / 10} for s in sites}
        return AdapterSpec(ranks=ranks, initial=initial)


class Penalised(Warm):
    """Adds 3 · Σ A² to the training loss."""

    name: ClassVar[str] = "penalised"

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor:
        return sum((3 * site.A.square().sum() for site in sites.values()), torch.zeros(()))


class Pausing(RankPruningStrategy):
    """Half of the run trains, a quarter only looks, and the rest trains again."""

    name: ClassVar[str] = "pausing"

    def phases(self, budget: ArmBudget) -> list[Phase]:
        return [Phase("first", share=0.5), Phase("look", share=0.25, kind="forward"), Phase("last")]


class Multiplied(Warm):
    """Trains the first two components only; the others are multiplied by zero."""

    name: ClassVar[str] = "multiplied"

    def before_step(self, view: StepView) -> Mapping[str, Tensor]:
        return {name: (torch.arange(site.rank) < 2).float() for name, site in view.sites.items()}


class Broken(RankPruningStrategy):
    """Assigns what is not a number."""

    name: ClassVar[str] = "broken"

    def decide(self, view: StepView) -> PruningPlan:
        if view.step != 3:
            return PruningPlan()
        return PruningPlan(assign={n: {"B": torch.full_like(s.B, float("nan"))} for n, s in view.sites.items()})


@dataclass(frozen=True)
class GatedConfig:
    kind: str = "rank"
    threshold: float = 0.05


class Gated(RankPruningStrategy):
    """A gate per component or per site with a proximal step after every update; twice the budget's rank at first."""

    name: ClassVar[str] = "gated"
    Config: ClassVar[type] = GatedConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        final = budget.solve(sites)
        return AdapterSpec(
            ranks={n: 2 * r for n, r in final.items()},
            final_ranks=final,
            gate=self.config.kind,
            gate_init=0.9,
            groups=AdapterSpec(ranks={}).groups | {"gate": ParameterGroup(lr_scale=20.0, weight_decay=0.0)},
        )

    def phases(self, budget: ArmBudget) -> list[Phase]:
        return [Phase("wide", share=0.5), Phase("narrow", restart_schedule=True)]

    def start(self, view: StepView) -> None:
        self.final = {n: s.rank // 2 for n, s in view.sites.items()}

    def decide(self, view: StepView) -> PruningPlan:
        shrunk = {}
        for name, site in view.sites.items():
            assert site.gate is not None
            shrunk[name] = {"gate": site.gate.sign() * (site.gate.abs() - self.config.threshold).clamp(min=0.0)}
        return PruningPlan(assign=shrunk, reason="proximal step")

    def end_phase(self, view: StepView) -> PruningPlan:
        if view.phase.name != "wide":
            return PruningPlan()
        keep = {}
        for name, site in view.sites.items():
            assert site.gate is not None
            scores = site.gate.abs().expand(site.rank) * site.B.norm(dim=0)
            keep[name] = keep_top(scores, self.final[name])
        return PruningPlan(keep=keep, reason="cut")

    def state_dict(self) -> dict[str, Any]:
        return {"final": self.final}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.final = dict(state["final"])
