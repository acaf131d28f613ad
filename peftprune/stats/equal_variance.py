"""A standard deviation that several methods share."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from peftprune.stats.validation import Floats, finite

_DRAWS = 9_999


class SharedDeviation(NamedTuple):
    """The pooled standard deviation `std`, its degrees of freedom, and the `p` of the test that all are equal."""

    std: float
    degrees: int
    p: float


def shared_deviation(groups: Sequence[ArrayLike]) -> SharedDeviation:
    """Returns the standard deviation of scores over seeds, pooled over methods: √(Σ (n_i − 1)·s_i² / Σ (n_i − 1)).

    Two or three seeds of one method hardly show how seeds vary, those of several methods together do, if they vary
    alike. p tests that, with Bartlett's statistic (1937) on 9,999 draws of variances of normal scores: its χ²
    approximation is bad below five seeds, and Levene's test is degenerate for two, whose distances from their centre
    are equal. A method that scores the same in every seed makes p the smallest possible.

    `groups` are the scores of each method, one per seed; methods with one are left out. Without two seeds of any method
    the result is NaN with 0 degrees, and p is NaN for fewer than two methods. Raises UsageError for a score that is not
    finite.
    """
    scores = [s for s in (finite("groups", g) for g in groups) if len(s) > 1]
    degrees = np.array([len(s) - 1 for s in scores], dtype=float)
    if not scores:
        return SharedDeviation(math.nan, 0, math.nan)
    variances = np.array([s.var(ddof=1) for s in scores])
    pooled = float(degrees @ variances / degrees.sum())
    if len(scores) < 2 or pooled == 0:
        return SharedDeviation(math.sqrt(pooled), int(degrees.sum()), math.nan)
    drawn = np.random.default_rng(0).chisquare(degrees, size=(_DRAWS, len(degrees))) / degrees
    extreme = int((_bartlett(drawn, degrees) >= _bartlett(variances[None], degrees)).sum())
    return SharedDeviation(math.sqrt(pooled), int(degrees.sum()), (1 + extreme) / (1 + _DRAWS))


def _bartlett(variances: Floats, degrees: Floats) -> Floats:
    """Returns Σ ν_i·ln(s²/s_i²), Bartlett's statistic up to a factor; infinite where a variance is 0."""
    pooled = variances @ degrees / degrees.sum()
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(pooled) * degrees.sum() - np.log(variances) @ degrees)
