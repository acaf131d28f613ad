"""The outcome of a comparison in words."""

from __future__ import annotations

import math

from peftprune.errors import UsageError
from peftprune.stats.validation import at_least, share


def verdict(
    difference: float,
    p: float,
    n_seeds: int,
    *,
    smallest_p: float = 0.0,
    comparisons: int = 1,
    alpha: float = 0.05,
    higher_is_better: bool = True,
) -> str:
    """Put a comparison with the baseline into words.

    A p that could not have been small says nothing of the method. Hence, before p is looked at: with one seed nothing
    is known of the variation between training runs, and a test whose smallest p, times the number of comparisons,
    exceeds alpha cannot find anything, however large the difference.

    Args:
        difference: method − baseline, in the metric.
        p: two-sided, adjusted for the comparisons made side by side (`holm`).
        n_seeds: pairs of runs behind it.
        smallest_p: the least p that the test can give here: `smallest_permutation_p(n)` for `paired_permutation` on n
            pairs, 2 / (1 + resamples) for `paired_bootstrap`, about 0.
        comparisons: how many p were adjusted together.
        alpha: the level.
        higher_is_better: the metric's direction.

    Returns:
        "better", "worse", "not distinguishable at this size" or "cannot reach significance with n seeds".

    Raises:
        UsageError: a difference or p that is missing or out of range, or counts under 1.
    """
    at_least("n_seeds", n_seeds, 1)
    at_least("comparisons", comparisons, 1)
    share("alpha", alpha)
    for name, value, least, most in (("p", p, 0, 1), ("difference", difference, -math.inf, math.inf)):
        if math.isnan(value) or not least <= value <= most:
            cure = "Say of a comparison that could not be made that it was not made"
            raise UsageError.of(name, value, "is no outcome of a test", cure)
    if n_seeds == 1 or smallest_p * comparisons > alpha:
        return f"cannot reach significance with {n_seeds} seed{'s' if n_seeds > 1 else ''}"
    if p > alpha or difference == 0:
        return "not distinguishable at this size"
    return "better" if (difference > 0) == higher_is_better else "worse"
