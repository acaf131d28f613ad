"""Controls of placement: as many adapters or ranks as a method allocates, but elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from peftprune.budget import ArmBudget
from peftprune.methods.lora_drop import LoRADrop
from peftprune.rng import generator
from peftprune.sites import SiteShape
from peftprune.strategy import AdapterSpec, RankPruningStrategy, check_option, option


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
