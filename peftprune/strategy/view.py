from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.phases import PhaseRange
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import Site


@dataclass(frozen=True)
class StepView:
    """What a strategy may see. Read-only: no evaluation result, no task name, no optimizer.

    Attributes:
        step: the current optimizer step; the first is 1.
        total_steps: steps of the whole run.
        phase: the phase this step belongs to, with its first and last step.
        budget: the arm's budget in integers.
        sites: site name to `Site`, whose tensors are detached and whose gradients are those of this step.
        signals: the declared signals of this step, by signal and site name.
        rng: the strategy's own generator; nothing else draws from it.
    """

    step: int
    total_steps: int
    phase: PhaseRange
    budget: ArmBudget
    sites: Mapping[str, Site]
    signals: Mapping[Signal, Mapping[str, Tensor]]
    rng: torch.Generator
