"""Controls: what a method does, less the one thing it claims."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from peftprune.budget import ArmBudget
from peftprune.methods.lora_drop import LoRADrop
from peftprune.methods.lorpa import LoRPA
from peftprune.sites import Site
from peftprune.strategy import (
    Phase,
    PruningPlan,
    RankPruningStrategy,
    StepView,
    check_option,
    option,
)


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
