"""Phases of a run, and the step ranges that they are resolved to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from peftprune.errors import UsageError
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.signal import Signal


@dataclass(frozen=True)
class Phase:
    """A range of steps inside the one training run.

    Its length is a `share` of all steps, or a number of `passes` over its own data, or, when both are None, whatever
    the other phases leave. At most one phase may leave both out.

    Attributes:
        name: shown in tables and ledgers.
        share: 0 < share ≤ 1.
        passes: passes over the phase's data (1.0 = each example once), above 0.
        kind: "train" updates weights; "forward" runs the model in eval mode without gradients, for statistics;
            "gradient" computes gradients as training does, for statistics, and updates nothing. All are charged to the
            budget.
        data: "all", or a fraction in (0, 1): a stratified sample of the training set, the same in every phase that
            names the same fraction.
        restart_schedule: the learning-rate schedule, warm-up included, begins anew with this phase.
        reset_optimizer: the optimizer's state is cleared when this phase begins.
        signals: which of the strategy's signals are collected in this phase; None for all.
    """

    name: str
    share: float | None = None
    passes: float | None = None
    kind: Literal["train", "forward", "gradient"] = "train"
    data: float | Literal["all"] = "all"
    restart_schedule: bool = False
    reset_optimizer: bool = False
    signals: frozenset[Signal] | None = None


@dataclass(frozen=True)
class PhaseRange:
    """A phase with its place in the run: steps `start` to `stop - 1`, counted from 0."""

    phase: Phase
    start: int
    stop: int

    @property
    def name(self) -> str:
        return self.phase.name

    @property
    def steps(self) -> int:
        return self.stop - self.start


def resolve_phases(
    phases: Sequence[Phase], *, total_steps: int, num_examples: int, batch_size: int
) -> tuple[PhaseRange, ...]:
    """Resolves shares and passes into integer step ranges that together cover the run exactly.

    Raises UsageError when the phases need more steps than there are, leave one empty, or leave steps over.
    """
    lengths: list[int | None] = []
    shares = 0.0
    for p in phases:
        # Shares are rounded where they end, so that shares that sum to 1 cover any number of steps.
        begin, shares = shares, shares + (p.share or 0.0)
        if p.share is not None:
            lengths.append(round(shares * total_steps) - round(begin * total_steps))
        elif p.passes is not None:
            examples = num_examples if p.data == "all" else subset_size(num_examples, p.data)
            lengths.append(math.ceil(p.passes * math.ceil(examples / batch_size)))
        else:
            lengths.append(None)
    open_ended = [i for i, n in enumerate(lengths) if n is None]
    if len(open_ended) > 1:
        names = [phases[i].name for i in open_ended]
        raise UsageError.of("phases", names, "give neither share nor passes", "At most one phase may leave both out")
    used = sum(n for n in lengths if n is not None)
    if open_ended:
        lengths[open_ended[0]] = total_steps - used
    if any(n is None or n < 1 for n in lengths) or (not open_ended and used != total_steps):
        shown = ", ".join(f"{p.name}={n}" for p, n in zip(phases, lengths, strict=True))
        problem = f"do not fit into a run of {total_steps} steps"
        raise UsageError.of("phases", shown, problem, "Train for more epochs, or shorten a phase")
    ranges, start = [], 0
    for phase, n in zip(phases, lengths, strict=True):
        assert n is not None
        ranges.append(PhaseRange(phase, start, start + n))
        start += n
    return tuple(ranges)


def phase_ranges(phases: Sequence[Phase], budget: ArmBudget) -> tuple[PhaseRange, ...]:
    """Returns the phases of a run of this budget as step ranges; see `resolve_phases`."""
    return resolve_phases(
        phases, total_steps=budget.total_steps, num_examples=budget.num_examples, batch_size=budget.batch_size
    )


def subset_size(num_examples: int, fraction: float) -> int:
    """Returns the number of examples in a stratified sample of this fraction: at least one."""
    return max(1, round(fraction * num_examples))


def phase_at(ranges: Sequence[PhaseRange], step: int) -> PhaseRange:
    """Returns the phase that the step (counted from 0) belongs to; the last one from its start on."""
    return next((r for r in ranges if step < r.stop), ranges[-1])
