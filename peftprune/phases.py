"""Phases as step ranges, and the learning rate that belongs to each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from peftprune.errors import UsageError
from peftprune.strategy import Phase


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
        """Number of optimizer steps in the phase."""
        return self.stop - self.start


def resolve_phases(
    phases: Sequence[Phase], *, total_steps: int, num_examples: int, batch_size: int
) -> tuple[PhaseRange, ...]:
    """Turn shares and passes into integer step ranges that together cover the run exactly.

    Raises:
        UsageError: when the phases ask for more steps than there are, leave one empty, or leave steps over.
    """
    lengths: list[int | None] = []
    shares = 0.0
    for p in phases:
        # Shares are rounded where they end, so that shares that sum to 1 cover any number of steps.
        begin, shares = shares, shares + (p.share or 0.0)
        by_share = None if p.share is None else round(shares * total_steps) - round(begin * total_steps)
        lengths.append(by_share if p.share is not None else _phase_steps(p, num_examples, batch_size))
    open_ended = [i for i, n in enumerate(lengths) if n is None]
    if len(open_ended) > 1:
        names = [phases[i].name for i in open_ended]
        raise UsageError.of("phases", names, "give neither share nor passes", "At most one phase may leave both out")
    used = sum(n for n in lengths if n is not None)
    if open_ended:
        lengths[open_ended[0]] = total_steps - used
    if any(n is None or n < 1 for n in lengths) or (not open_ended and used != total_steps):
        shown = ", ".join(f"{p.name}={n}" for p, n in zip(phases, lengths, strict=True))
        raise UsageError.of(
            "phases",
            shown,
            f"do not fit into a run of {total_steps} steps",
            "Train for more epochs, or shorten a phase",
        )
    ranges, start = [], 0
    for phase, n in zip(phases, lengths, strict=True):
        assert n is not None
        ranges.append(PhaseRange(phase, start, start + n))
        start += n
    return tuple(ranges)


def _phase_steps(phase: Phase, num_examples: int, batch_size: int) -> int | None:
    if phase.passes is not None:
        examples = num_examples if phase.data == "all" else subset_size(num_examples, phase.data)
        return math.ceil(phase.passes * math.ceil(examples / batch_size))
    return None


def subset_size(num_examples: int, fraction: float) -> int:
    """How many examples a stratified sample of this fraction holds: at least one."""
    return max(1, round(fraction * num_examples))


def phase_at(ranges: Sequence[PhaseRange], step: int) -> PhaseRange:
    """The phase that the step (counted from 0) belongs to; the last one from its start on."""
    return next((r for r in ranges if step < r.stop), ranges[-1])


def learning_rate_factors(ranges: Sequence[PhaseRange], warmup_ratio: float) -> list[float]:
    """The factor on the peak learning rate for every step: linear warm-up, then linear decay towards 0.

    Each phase that restarts the schedule begins a new segment with a warm-up of `warmup_ratio` of the segment.
    Step i of a segment of n steps with w warm-up steps has (i + 1) / (w + 1) while warming up and (n - i) / (n - w)
    after it, so that no step is spent at a rate of 0.

    Returns:
        One factor in (0, 1] per step.
    """
    starts = [0] + [r.start for r in ranges[1:] if r.phase.restart_schedule]
    stops = [*starts[1:], ranges[-1].stop]
    factors: list[float] = []
    for start, stop in zip(starts, stops, strict=True):
        n = stop - start
        warmup = min(math.ceil(warmup_ratio * n), n - 1)
        factors += [(i + 1) / (warmup + 1) if i < warmup else (n - i) / (n - warmup) for i in range(n)]
    return factors


def rewarm_factors(ranges: Sequence[PhaseRange], warmup_ratio: float) -> list[float]:
    """The factor on somebody else's schedule for every step: 1, but for a warm-up where a phase restarts the schedule.

    Step i of such a segment of n steps has (i + 1) / (w + 1) in its first w = ⌈warmup_ratio · n⌉ steps, at most n − 1.

    Returns:
        One factor in (0, 1] per step.
    """
    factors = [1.0] * ranges[-1].stop
    starts = [r.start for r in ranges[1:] if r.phase.restart_schedule]
    for start, stop in pairwise([*starts, len(factors)]):
        n = stop - start
        warmup = min(math.ceil(warmup_ratio * n), n - 1)
        factors[start : start + warmup] = [(i + 1) / (warmup + 1) for i in range(warmup)]
    return factors
