"""Controls: what a method does, less the one thing it claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from peftprune.methods.lora_drop import LoRADrop
from peftprune.methods.lorpa import LoRPA
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import check_option, option
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.rng import generator
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec
from peftprune.strategy.view import StepView


class RandomRank(LoRPA):
    """LoRPA with the kept components drawn at random: does its score matter? (The paper's own ablation, by its code.)

    Source: Kim, Kim and Kang, Mathematics 2024; code JuHyng/LoRPA.
    """

    name: ClassVar[str] = "random-rank"
    source: ClassVar[str] = "ablation of LoRPA, in its authors' code"

    def scores(self, site: Site, view: StepView) -> Tensor:
        return torch.rand(site.rank, generator=view.rng)

    def end_phase(self, view: StepView) -> PruningPlan:
        # Scores that were drawn say nothing of a site.
        return replace(super().end_phase(view), scores={})


@dataclass(frozen=True)
class LoRARestartConfig:
    """Options of lora-restart.

    Attributes:
        dense_share: where the restart happens, in (0, 1); 0.2 as in LoRPA (its authors' code).
    """

    dense_share: float = option(0.2, "authors' code", "share of the run before the restart")

    def __post_init__(self) -> None:
        check_option(
            0 < self.dense_share < 1,
            "lora-restart", "dense_share", self.dense_share, "is outside (0, 1)", "Give 0.2, for example",
        )  # fmt: skip


class LoRARestart(RankPruningStrategy):
    """LoRA at the budget's rank with LoRPA's restart: without it, restart and pruning are confounded.

    Optimizer reset and second warm-up come after the same share of the run as in LoRPA. A control of ours.
    """

    name: ClassVar[str] = "lora-restart"
    source: ClassVar[str] = "control of ours for LoRPA"
    prunes: ClassVar[str] = "nothing"
    Config: ClassVar[type] = LoRARestartConfig

    def phases(self, budget: ArmBudget) -> list[Phase]:
        return [
            Phase("first", share=self.config.dense_share),
            Phase("second", restart_schedule=True, reset_optimizer=True),
        ]


class Delete(LoRADrop):
    """LoRA-drop with the unimportant sites removed instead of shared: does sharing matter? A control of ours."""

    name: ClassVar[str] = "delete"
    source: ClassVar[str] = "control of ours for LoRA-drop"

    def plan(self, kept: set[str], view: StepView) -> PruningPlan:
        holders = [site.shape for name, site in view.sites.items() if name in kept]
        return PruningPlan(
            reinit=self._ranks(holders, view),
            drop=frozenset(set(view.sites) - kept),
            scores=self.scores({n: s.shape for n, s in view.sites.items()}),
            reason=f"kept {len(kept)} of {len(view.sites)} sites and removed the others",
        )


class Reverse(LoRADrop):
    """LoRA-drop with the least important sites kept: does its score matter? A control of ours.

    LoRA-drop would keep the n most important sites; here the n least important keep their own adapter and the others
    share. Where n is more than half of the sites, some are kept by both. The trace holds LoRA-drop's scores.
    """

    name: ClassVar[str] = "reverse"
    source: ClassVar[str] = "control of ours for LoRA-drop"

    def kept_sites(self, shapes: Mapping[str, SiteShape]) -> list[str]:
        scores = self.scores(shapes)
        n = len(super().kept_sites(shapes))
        # A kind without any output has no score among its own: it matters least.
        return sorted(shapes, key=lambda name: scores.get(name, 0.0))[:n]


@dataclass(frozen=True)
class TopLayersConfig:
    """Options of top-layers.

    Attributes:
        kept: share of the layers that carry adapters, from the highest down, in (0, 1], rounded up. 0.5 is a convention
            of ours.
    """

    kept: float = option(0.5, "convention of ours", "share of the layers that carry adapters")

    def __post_init__(self) -> None:
        check_option(0 < self.kept <= 1, "top-layers", "kept", self.kept, "is outside (0, 1]", "Give 0.5, for example")


class TopLayers(RankPruningStrategy):
    """Adapters in the highest layers only, at a rank that spends the whole budget there: is a probe needed at all?

    In models with an encoder and a decoder the share counts within each. A control of ours. No decision is made in
    training, so the trace holds no scores.
    """

    name: ClassVar[str] = "top-layers"
    source: ClassVar[str] = "control of ours for LoRA-drop"
    prunes: ClassVar[str] = "nothing"
    Config: ClassVar[type] = TopLayersConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        stacks: dict[bool, set[int]] = {}
        for s in sites:
            stacks.setdefault(s.stream == "encoder", set()).add(s.layer)
        high = {stack: sorted(layers)[-math.ceil(self.config.kept * len(layers)) :] for stack, layers in stacks.items()}
        holders = [s for s in sites if s.layer in high[s.stream == "encoder"]]
        return AdapterSpec(ranks=dict.fromkeys((s.name for s in sites), 0) | budget.solve(holders))


@dataclass(frozen=True)
class ShuffledConfig:
    """Options of shuffled.

    Attributes:
        of: label of the arm whose final ranks are shuffled; it must be a method of the same study. lora-drop is a
            convention of ours.
    """

    of: str = option("lora-drop", "convention of ours", "label of the arm whose final ranks are shuffled")

    def __post_init__(self) -> None:
        check_option(
            bool(self.of.strip()), "shuffled", "of", self.of, "names no arm", "Give of='lora-drop', for example"
        )


class Shuffled(RankPruningStrategy):
    """The final ranks of another method, at sites drawn at random: does it matter *where* the ranks are?

    The other arm of the same task, budget and seed runs first. Its final ranks (sites that share an adapter count once,
    so the others of a group hold 0) are dealt to the sites in a random order drawn from the seed, and then trained from
    the start as plain LoRA. Since sites cost differently per rank, the dealt ranks are only the proportions: the common
    solver turns them into ranks that meet the budget, which leaves them as they are where all sites cost the same. A
    site dealt 0 stays without an adapter. A control of ours. No decision is made in training, so the trace holds no
    scores.
    """

    name: ClassVar[str] = "shuffled"
    source: ClassVar[str] = "control of ours for every method that allocates ranks"
    prunes: ClassVar[str] = "nothing"
    Config: ClassVar[type] = ShuffledConfig

    @property
    def depends_on(self) -> str | None:
        return self.config.of

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        if budget.outcome is None:
            return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)
        order = torch.randperm(len(sites), generator=generator(budget.outcome.seed, "strategy", "shuffled"))
        dealt = {s.name: budget.outcome.ranks[sites[i].name] for s, i in zip(sites, order.tolist(), strict=True)}
        if budget.paper:
            return AdapterSpec(ranks={s.name: min(dealt[s.name], s.max_rank) for s in sites})
        holders = [s for s in sites if dealt[s.name] > 0]
        return AdapterSpec(ranks=dict.fromkeys(dealt, 0) | budget.solve(holders, dealt))
