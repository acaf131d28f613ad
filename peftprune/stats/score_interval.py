"""The interval of one trained model's score."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from peftprune.stats.metric_sums import SUM_METRICS
from peftprune.stats.paired import Metric, _references, _values
from peftprune.stats.validation import finite, share


def score_interval(
    predictions: ArrayLike,
    references: ArrayLike | None = None,
    metric: Metric | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a metric over examples (Efron 1979).

    It speaks of this one trained model on new examples, not of the method that made it.

    Args:
        predictions: (n,); without a metric, scores whose mean is meant; for "bleu" (n, 10), the statistics of each
            example, see `peftprune.stats.text_metrics.statistics`.
        references: (n,), the true answers; none without a metric, or for "bleu".
        metric: a metric's name, or a function of (predictions, references).
        confidence: strictly between 0 and 1.
        resamples: number of resamples; all metrics but "spearman" are vectorised.
        seed: of the resampling.

    Returns:
        (low, high).

    Raises:
        UsageError: lengths that differ, values that are not finite, or a metric that is not known.
    """
    sums = SUM_METRICS.get(metric) if isinstance(metric, str) else None
    of_statistics = sums is not None and sums.of_statistics
    given = finite("predictions", predictions, (1 + of_statistics,))
    truth = np.zeros(len(given)) if of_statistics else _references(references, metric, len(given))
    tail = (1 - share("confidence", confidence)) / 2
    _, resampled = _values(given[None, :], truth, metric, resamples, np.random.default_rng(seed))
    low, high = np.quantile(resampled[:, 0], (tail, 1 - tail))
    return float(low), float(high)
