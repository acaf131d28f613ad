"""The learning-rate factor of every step."""

import math
from collections.abc import Sequence
from itertools import pairwise

from peftprune.strategy.phases import PhaseRange


def learning_rate_factors(ranges: Sequence[PhaseRange], warmup_ratio: float) -> list[float]:
    """Returns the factor on the peak learning rate for every step, in (0, 1]: linear warm-up, then linear decay to 0.

    Each phase that restarts the schedule begins a new segment with a warm-up of `warmup_ratio` of the segment.
    Step i of a segment of n steps with w warm-up steps has (i + 1) / (w + 1) while warming up and (n - i) / (n - w)
    after it, so that no step is spent at a rate of 0.
    """
    factors: list[float] = []
    for start, stop in pairwise([0, *_restarts(ranges), ranges[-1].stop]):
        n, rising = stop - start, _warmup(stop - start, warmup_ratio)
        factors += [*rising, *((n - i) / (n - len(rising)) for i in range(len(rising), n))]
    return factors


def rewarm_factors(ranges: Sequence[PhaseRange], warmup_ratio: float) -> list[float]:
    """Returns the factor on another schedule for every step: 1, except in warm-ups where a phase restarts the schedule.

    The warm-ups are those of `learning_rate_factors`.
    """
    factors = [1.0] * ranges[-1].stop
    for start, stop in pairwise([*_restarts(ranges), len(factors)]):
        rising = _warmup(stop - start, warmup_ratio)
        factors[start : start + len(rising)] = rising
    return factors


def _restarts(ranges: Sequence[PhaseRange]) -> list[int]:
    """Returns the steps after the first at which a phase restarts the schedule."""
    return [r.start for r in ranges[1:] if r.phase.restart_schedule]


def _warmup(n: int, ratio: float) -> list[float]:
    """Returns the factors of the ⌈ratio · n⌉ warm-up steps of a segment of n steps; at most n − 1."""
    steps = min(math.ceil(ratio * n), n - 1)
    return [(i + 1) / (steps + 1) for i in range(steps)]
