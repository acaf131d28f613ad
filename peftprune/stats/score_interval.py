import numpy as np
from numpy.typing import ArrayLike

from peftprune.stats.resampling import MetricLike, check_references, example_axes, resample
from peftprune.stats.validation import finite, share


def score_interval(
    predictions: ArrayLike,
    references: ArrayLike | None = None,
    metric: MetricLike | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval (low, high) of a metric over examples (Efron 1979).

    It concerns this one trained model on new examples, not the method that trained it.

    Args:
        predictions: (n,); without a metric, the scores to average; for a metric of generated text each example's
            `Metric.statistics`, (n,) or (n, 10) for "bleu".
        references: (n,), the true answers; none without a metric, or for generated text.
        metric: a metric's name, or a function of (predictions, references).
        confidence: strictly between 0 and 1.
        resamples: number of resamples; all metrics but "spearman" are vectorised. seed: of the resampling.

    Raises UsageError for lengths that differ, values that are not finite, or an unknown metric.
    """
    values = finite("predictions", predictions, (1 + example_axes(metric),))
    truth = check_references(references, metric, len(values))
    tail = (1 - share("confidence", confidence)) / 2
    _, resampled = resample(values[None, :], truth, metric, resamples, np.random.default_rng(seed))
    low, high = np.quantile(resampled[:, 0], (tail, 1 - tail))
    return float(low), float(high)
