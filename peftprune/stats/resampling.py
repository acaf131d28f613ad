"""A metric of several models on resampled examples."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.stats.metric_sums import MEAN, SumMetric
from peftprune.stats.metrics import METRICS, check_metrics
from peftprune.stats.validation import Floats, finite

MetricLike = str | Callable[[Floats, Floats], float]
"""A name of `peftprune.stats.metrics.METRICS`, or (predictions (n,), references (n,)) to a number."""

_CHUNK = 2**22
"""Entries of a block of resampling counts: 32 MB."""


def example_axes(metric: MetricLike | None) -> int:
    """Returns how many axes the prediction for one example has: 0, or 1 for a row of statistics."""
    sums = _sums(metric)
    return 0 if sums is None else sums.axes


def check_references(references: ArrayLike | None, metric: MetricLike | None, n: int) -> Floats:
    """Returns the n references that the metric compares predictions with; zeros for one that takes none.

    Raises UsageError for a metric without references or the reverse, or another number of them.
    """
    sums = _sums(metric)
    if sums is not None and sums.from_statistics and (metric is not None or references is None):
        return np.zeros(n)
    if references is None or metric is None:
        given = "a metric without references" if references is None else "references without a metric"
        cure = "Give both, with predictions as scores; or neither, with scores per example"
        raise UsageError.of("metric", metric, f"leaves {given}", cure)
    truth = finite("references", references)
    if len(truth) != n:
        raise UsageError.of("references", len(truth), f"is not the number of examples, {n}", "Give one per example")
    return truth


def resample(
    models: Floats, truth: Floats, metric: MetricLike | None, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Returns the metric of each model (models,), and on resampled examples (resamples, models)."""
    sums = _sums(metric)
    if sums is not None:
        return _by_sums(models, truth, sums, resamples, rng)
    assert metric is not None
    compute = METRICS[metric].compute if isinstance(metric, str) else metric
    resampled = np.empty((resamples, len(models)))
    for i in range(resamples):
        drawn = rng.integers(0, len(truth), size=len(truth))
        resampled[i] = [compute(predictions[drawn], truth[drawn]) for predictions in models]
    return np.array([compute(predictions, truth) for predictions in models], dtype=float), resampled


def _sums(metric: MetricLike | None) -> SumMetric | None:
    """Returns the metric, or the mean for None, as a function of sums; None if each resample must recompute it."""
    if not isinstance(metric, str):
        return MEAN if metric is None else None
    check_metrics([metric])
    return METRICS[metric].sums


def _by_sums(
    models: Floats, truth: Floats, metric: SumMetric, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    features = metric.features(models, truth)
    n_models, k, n = features.shape
    # Examples with equal features are interchangeable, so only the number of each kind is drawn. Right and wrong
    # answers leave a few dozen kinds, whatever the number of examples.
    kinds, counts = np.unique(features.reshape(n_models * k, n), axis=1, return_counts=True)

    def evaluate(weights: Floats) -> Floats:
        return metric.evaluate((weights @ kinds.T).reshape(*weights.shape[:-1], n_models, k))

    rows = max(1, _CHUNK // len(counts))
    chunks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    drawn = [evaluate(rng.multinomial(n, counts / n, size=size).astype(float)) for size in chunks]
    return evaluate(counts.astype(float)), np.concatenate(drawn)
