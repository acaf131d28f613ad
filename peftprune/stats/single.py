"""The interval of one trained model's score."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from peftprune.stats.checks import finite, share
from peftprune.stats.paired import Metric, _references, _values


def score_interval(
    predictions: ArrayLike,
    references: ArrayLike,
    metric: Metric,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric over examples (Efron 1979).

    It speaks of this one trained model on new examples, not of the method that made it.

    Args:
        predictions: (n,).
        references: (n,), the true answers.
        metric: a metric's name, or a function of (predictions, references).
        confidence: strictly between 0 and 1.
        resamples: number of resamples; all metrics but "spearman" are vectorised.
        seed: of the resampling.

    Returns:
        (low, high).

    Raises:
        UsageError: lengths that differ, values that are not finite, or a metric that is not known.
    """
    given = finite("predictions", predictions)
    truth = _references(references, metric, len(given))
    tail = (1 - share("confidence", confidence)) / 2
    _, resampled = _values(given[None, :], truth, metric, resamples, np.random.default_rng(seed))
    low, high = np.quantile(resampled[:, 0], (tail, 1 - tail))
    return float(low), float(high)
