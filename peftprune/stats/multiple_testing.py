"""Correction for testing several methods at once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.stats.validation import Floats, share


def holm(p_values: ArrayLike) -> Floats:
    """Returns p values adjusted by Holm's step-down procedure (1979), which keeps the chance of a false positive at α.

    The i-th smallest of m values becomes max over j ≤ i of min(1, (m − j + 1)·p_(j)), j from 1. The tests may depend on
    each other in any way.

    NaN marks a missing comparison (its arm failed), stays NaN and is not counted. Raises UsageError for values that are
    not one-dimensional, or one outside [0, 1].
    """
    p = np.asarray(p_values, dtype=float)
    if p.ndim != 1:
        raise UsageError.of("p_values", p.shape, "is not a row of values", "Give one p per comparison")
    made = ~np.isnan(p)
    values = p[made]
    odd = values[(values < 0) | (values > 1)]
    if odd.size:
        cure = "Give p values as the tests return them"
        raise UsageError.of("p_values", float(odd[0]), "is not between 0 and 1", cure)
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
    interval covers its own difference with at least 1 − alpha. That all of them do at once is not claimed. Raises
    UsageError as `holm`, or for alpha outside (0, 1).
    """
    p, adjusted = np.asarray(p_values, dtype=float), holm(p_values)
    made = np.flatnonzero(~np.isnan(p))
    rejected = int((adjusted[made] <= share("alpha", alpha)).sum())
    levels = np.full(p.shape, np.nan)
    order = made[np.argsort(p[made], kind="stable")]
    levels[order] = alpha / (len(made) - np.minimum(np.arange(len(made)), min(rejected, len(made) - 1)))
    return levels


class Adjusted(NamedTuple):
    """Tests of several methods together: adjusted p values, and the `levels` that decide the methods' intervals.

    `p` tests a difference of 0; with a margin m, `p_above` tests differences up to −m and `p_below` those from m.
    """

    p: Floats
    levels: Floats
    p_above: Floats | None = None
    p_below: Floats | None = None


def adjust(
    p: ArrayLike, p_above: ArrayLike | None = None, p_below: ArrayLike | None = None, alpha: float = 0.05
) -> Adjusted:
    """Returns `holm` and `holm_levels` of one test a method, or the same procedure for all tests with a margin.

    Of a method's three hypotheses (no difference; at least m below; at least m above), at most one is true. So many of
    3·m hypotheses cannot be true together, which a step-down procedure may use (Shaffer 1986). A method counts 1 until
    the first is rejected; then 1/2, since doubled one-sided p values have half the level; then 0. The smallest p that
    is left is tested at alpha divided by the sum of these counts, or by 1 if that is less. The chance of any false
    rejection stays at alpha, however the tests depend on each other. A method's level is that of its last rejection, or
    of the first test that does not reject; an interval at this level shows exactly what is rejected.

    `p` are two-sided; `p_above` and `p_below`, with a margin, are the doubled p of the one-sided tests
    (`PairedDifference.p_above`).
    """
    if p_above is None or p_below is None:
        return Adjusted(holm(p), holm_levels(p, alpha))
    values = np.stack([np.asarray(v, dtype=float) for v in (p, p_above, p_below)], axis=1)
    left, found = np.ones(values.shape, dtype=bool), np.empty(values.shape)
    levels, rejecting, reached = np.full(len(values), np.nan), True, 0.0
    for place in np.argsort(values, axis=None, kind="stable"):
        method, test = divmod(int(place), 3)
        count = max(1.0, float(np.where(left[:, 0], 1.0, 0.5 * left[:, 1:].any(axis=1)).sum()))
        reached = max(reached, min(1.0, count * values[method, test]))
        found[method, test], left[method, test] = reached, False
        if rejecting and reached > share("alpha", alpha):
            rejecting = False
            levels[np.isnan(levels)] = alpha / count
        if rejecting:
            levels[method] = alpha / count
    return Adjusted(found[:, 0], levels, found[:, 1], found[:, 2])
