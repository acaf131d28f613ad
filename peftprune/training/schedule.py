"""The learning-rate factor of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from peftprune.strategy.phases import PhaseRange


def learning_rate_factors(ranges: Sequence[PhaseRange], warmup_ratio: float) -> list[float]:
    """Returns the factor on the peak learning rate for every step: linear warm-up, then linear decay towards 0.

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
    """Returns the factor on another schedule for every step: 1, except in warm-ups where a phase restarts the schedule.

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
