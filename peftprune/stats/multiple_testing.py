"""Correction for testing several methods at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.stats.validation import Floats, share


def holm(p_values: ArrayLike) -> Floats:
    """Returns p values adjusted by Holm's step-down procedure (1979), which keeps the chance of a false positive at α.

    The i-th smallest of m values becomes max over j ≤ i of min(1, (m − j + 1)·p_(j)), j from 1. The tests may depend on
    each other in any way.

    Args:
        p_values: m values in [0, 1]; NaN marks a missing comparison (its arm failed), stays NaN and is not counted.

    Returns:
        The adjusted values, in the given order.

    Raises:
        UsageError: not one-dimensional, or a value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1:
        raise UsageError.of("p_values", p.shape, "is not a row of values", "Give one p per comparison")
    made = ~np.isnan(p)
    values = p[made]
    odd = values[(values < 0) | (values > 1)]
    if odd.size:
        raise UsageError.of(
            "p_values", float(odd[0]), "is not between 0 and 1", "Give p values as the tests return them"
        )
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.full(p.shape, np.nan)
    adjusted[np.flatnonzero(made)[order]] = np.minimum(stepped, 1.0)
    return adjusted


def holm_levels(p_values: ArrayLike, alpha: float = 0.05) -> Floats:
    """Returns the level at which Holm's procedure decides each comparison; 1 − level is its interval's confidence.

    Of m comparisons, that with the k-th smallest p is tested at alpha/(m − k + 1), up to the first that is not
    rejected, whose level holds for all that follow. Then p ≤ level exactly where `holm` gives at most alpha, so an
    interval from the same test excludes 0 exactly where the adjusted p is significant. No level exceeds alpha, so each
    interval covers its own difference with at least 1 − alpha. That all of them do at once is not claimed.

    Raises:
        UsageError: as `holm`, or alpha outside (0, 1).
    """
    p, adjusted = np.asarray(p_values, dtype=float), holm(p_values)
    made = np.flatnonzero(~np.isnan(p))
    rejected = int((adjusted[made] <= share("alpha", alpha)).sum())
    levels = np.full(p.shape, np.nan)
    order = made[np.argsort(p[made], kind="stable")]
    levels[order] = alpha / (len(made) - np.minimum(np.arange(len(made)), min(rejected, len(made) - 1)))
    return levels
