"""The outcome of a comparison."""

from __future__ import annotations

import math
from enum import Enum

from peftprune.errors import UsageError
from peftprune.stats.validation import at_least, share


class Verdict(Enum):
    """The outcome of a comparison with the baseline."""

    BETTER = "better"
    WORSE = "worse"
    NOT_DISTINGUISHABLE = "not distinguishable"
    CANNOT_REACH_SIGNIFICANCE = "cannot reach significance"


def verdict(
    difference: float,
    p: float,
    n_seeds: int,
    *,
    smallest_p: float = 0.0,
    comparisons: int = 1,
    alpha: float = 0.05,
    higher_is_better: bool = True,
) -> Verdict:
    """Returns the outcome of a comparison with the baseline.

    `CANNOT_REACH_SIGNIFICANCE` is decided before p is used: one seed gives no estimate of the variation between
    training runs, and a test whose smallest possible p, times the number of comparisons, exceeds alpha never rejects,
    however large the difference.

    Args:
        difference: method − baseline, in the metric.
        p: two-sided, adjusted for simultaneous comparisons (`holm`).
        n_seeds: number of paired runs.
        smallest_p: the smallest p that the test can give: `smallest_permutation_p(n)` for `paired_permutation` on n
            pairs, 2 / (1 + resamples) for `paired_bootstrap`, about 0.
        comparisons: how many p were adjusted together.
        alpha: the level.
        higher_is_better: the metric's direction.

    Raises:
        UsageError: difference or p is NaN or out of range, or a count is below 1.
    """
    at_least("n_seeds", n_seeds, 1)
    at_least("comparisons", comparisons, 1)
    share("alpha", alpha)
    for name, value, least, most in (("p", p, 0, 1), ("difference", difference, -math.inf, math.inf)):
        if math.isnan(value) or not least <= value <= most:
            raise UsageError.of(name, value, "is not the outcome of a test", "Leave out comparisons that were not made")
    if n_seeds == 1 or smallest_p * comparisons > alpha:
        return Verdict.CANNOT_REACH_SIGNIFICANCE
    if p > alpha or difference == 0:
        return Verdict.NOT_DISTINGUISHABLE
    return Verdict.BETTER if (difference > 0) == higher_is_better else Verdict.WORSE
