"""Ratios of times measured side by side, with intervals: pure functions on plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from scipy import stats

_RESAMPLES = 2000


def compared(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Compares two series of times round by round.

    Args:
        seconds: times in each round, above 0.
        reference: times of the reference in the same rounds.

    Returns:
        `median` of the rounds' ratios with the 95 % percentile bootstrap interval `low` to `high` over rounds, the
        ratio of the sums as `total`, and the number of `rounds`.

    Raises:
        ValueError: there are no rounds, or different numbers of them.
    """
    if not seconds or len(seconds) != len(reference):
        raise ValueError(f"{len(seconds)} and {len(reference)} rounds cannot be compared")
    ratios = np.asarray(seconds) / np.asarray(reference)
    drawn = np.random.default_rng(0).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return {
        "median": float(median(ratios.tolist())),
        "low": float(low),
        "high": float(high),
        "total": sum(seconds) / sum(reference),
        "rounds": len(ratios),
    }


def described(scores: Sequence[float]) -> dict[str, Any]:
    """Returns the mean, the standard deviation (n - 1; None for one score) and the scores."""
    return {"mean": mean(scores), "std": stdev(scores) if len(scores) > 1 else None, "scores": list(scores)}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """Returns the difference of two means with Welch's 95 % interval, None with fewer than two scores on a side.

    If neither side varies, both ends of the interval are the difference.
    """
    gap = mean(ours) - mean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return {"difference": gap, "low": None, "high": None}
    if stdev(ours) == stdev(theirs) == 0:
        return {"difference": gap, "low": gap, "high": gap}
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    return {"difference": gap, "low": float(interval.low), "high": float(interval.high)}
