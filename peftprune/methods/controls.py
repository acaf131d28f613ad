"""Controls: each repeats a method without the one element whose effect is in question."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from peftprune.methods.lora_drop import LoRADrop, LoRADropConfig
from peftprune.methods.lorpa import LoRPA
from peftprune.methods.transplant import OfAnother, TransplantConfig
from peftprune.strategy import AdapterSpec, ArmBudget, Options, Phase, PruningPlan, Site, SiteShape, StepView, option
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.rng import generator


class RandomRank(LoRPA):
    """LoRPA with the kept components drawn at random; shows whether LoRPA's score matters.

    The authors' code has this ablation. The trace holds no scores.
    """

    name = "random-rank"
    source = "ablation in the authors' code of LoRPA, JuHyng/LoRPA"

    def scores(self, site: Site, view: StepView) -> Tensor:
        return torch.rand(site.rank, generator=view.rng)

    def end_phase(self, view: StepView) -> PruningPlan:
        return replace(super().end_phase(view), scores={})


@dataclass(frozen=True)
class LoRARestartConfig(Options):
    dense_share: float = option(0.2, "authors' code", gt=0, lt=1, help=
        "share of the run before the restart, as in LoRPA")  # fmt: skip


class LoRARestart(RankPruningStrategy):
    """LoRA at the budget's rank with LoRPA's restart; separates the effect of the restart from that of pruning.

    The optimizer reset and the second warm-up come after the same share of the run as in LoRPA.
    """

    name = "lora-restart"
    source = "control for LoRPA"
    prunes = "nothing"
    Config = LoRARestartConfig

    def phases(self, budget: ArmBudget) -> list[Phase]:
        return [
            Phase("first", share=self.config.dense_share),
            Phase("second", restart_schedule=True, reset_optimizer=True),
        ]


@dataclass(frozen=True)
class DeleteConfig(LoRADropConfig):
    rest: str = option("delete", "convention", choices=("delete",), later=True, help=
        "the other sites lose their adapters")  # fmt: skip


class Delete(LoRADrop):
    """LoRA-drop with the unimportant sites removed instead of shared; shows whether sharing matters.

    Scores in the trace: LoRA-drop's.
    """

    name = "delete"
    source = "control for LoRA-drop"
    actions = ("remove sites", "restart adapters")
    Config = DeleteConfig


class Reverse(LoRADrop):
    """LoRA-drop with the least important sites kept; shows whether LoRA-drop's score matters.

    Where LoRA-drop keeps the n most important sites, the n least important ones keep an adapter of their own and the
    others share one. Where n exceeds half of the sites, some are kept by both.

    Scores in the trace: LoRA-drop's.
    """

    name = "reverse"
    source = "control for LoRA-drop"

    def kept_sites(self, shapes: Mapping[str, SiteShape]) -> list[str]:
        scores = self.scores(shapes)
        n = len(super().kept_sites(shapes))
        # A site whose kind has no output at all has no score: it is the least important.
        return sorted(shapes, key=lambda name: scores.get(name, 0.0))[:n]


@dataclass(frozen=True)
class TopLayersConfig(Options):
    kept: float = option(0.5, "convention", gt=0, le=1, help=
        "share of the layers that carry adapters, from the highest down, rounded up")  # fmt: skip


class TopLayers(RankPruningStrategy):
    """Adapts the highest layers only, at a rank that spends the whole budget there; shows whether a probe is needed.

    In models with an encoder and a decoder the share counts within each. The trace holds no scores.
    """

    name = "top-layers"
    source = "control for LoRA-drop"
    prunes = "nothing"
    decides = ("at the start",)
    Config = TopLayersConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        stacks: dict[bool, set[int]] = {}
        for s in sites:
            stacks.setdefault(s.stream == "encoder", set()).add(s.layer)
        high = {stack: sorted(layers)[-math.ceil(self.config.kept * len(layers)) :] for stack, layers in stacks.items()}
        holders = [s for s in sites if s.layer in high[s.stream == "encoder"]]
        return AdapterSpec(ranks=dict.fromkeys((s.name for s in sites), 0) | budget.solve(holders))


@dataclass(frozen=True)
class ShuffledConfig(TransplantConfig):
    of: str = option("lora-drop", "convention", help=
        "label of the method whose final ranks are shuffled; with `method`, folder of its study")  # fmt: skip


class Shuffled(OfAnother):
    """Assigns the final ranks of another method to randomly drawn sites; shows whether the placement of ranks matters.

    The other arm of the same task, budget and seed runs first. Its final ranks are permuted over the sites, drawn from
    the seed; of sites that share an adapter the first holds the rank and the others 0. The result is trained from the
    start as plain LoRA. Since sites cost differently per rank, the permuted ranks serve as proportions, and the common
    solver turns them into ranks that meet the budget; where all sites cost the same it leaves them unchanged. A site of
    rank 0 has no adapter. The trace holds no scores.
    """

    name = "shuffled"
    Config = ShuffledConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        if budget.outcome is None:
            return AdapterSpec(ranks=budget.solve(sites), decided_in_training=True)
        order = torch.randperm(len(sites), generator=generator(budget.outcome.seed, "strategy", "shuffled"))
        drawn = {s.name: budget.outcome.ranks[sites[i].name] for s, i in zip(sites, order.tolist(), strict=True)}
        if budget.paper:
            return AdapterSpec(ranks={s.name: min(drawn[s.name], s.max_rank) for s in sites})
        holders = [s for s in sites if drawn[s.name] > 0]
        return AdapterSpec(ranks=dict.fromkeys(drawn, 0) | budget.solve(holders, drawn))
