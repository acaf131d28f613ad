"""Metrics as functions of sums over examples, so that thousands of resamples cost one matrix product.

A resample of the examples is a vector w of counts. Each metric here depends only on the sums Σ_x w_x·f(x) of a few
features f of an example: `features` computes f, `evaluate` computes the metric from the sums.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from peftprune.stats.validation import Floats


@dataclass(frozen=True)
class SumMetric:
    """A metric that is a function of sums.

    `features` maps predictions (models, n) and references (n,) to features (models, k, n), and `evaluate` sums (..., k)
    to values (...). With `from_statistics` the predictions are statistics of each example that already include the
    references. One example's prediction has `axes`: 0 for a number, 1 for a row of statistics, (models, n, k).
    """

    features: Callable[[Floats, Floats], Floats]
    evaluate: Callable[[Floats], Floats]
    from_statistics: bool = False
    axes: int = 0


def _mean_features(scores: Floats, _: Floats) -> Floats:
    return np.stack([scores, np.ones_like(scores)], axis=1)


def _class_features(predictions: Floats, references: Floats) -> Floats:
    """Returns, for each class, its hits, predictions and references: 3 × classes features of at least two classes."""
    classes = np.union1d(np.union1d(predictions, references), [0.0, 1.0])[:, None]
    predicted = predictions[:, None, :] == classes
    is_class = np.broadcast_to(references == classes, predicted.shape)
    return np.concatenate([predicted & is_class, predicted, is_class], axis=1).astype(float)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """Returns the ratio, and 0 where the denominator is 0, as the functions in `peftprune.stats.metrics` do."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def _accuracy(sums: Floats) -> Floats:
    hits, _, present = np.split(sums, 3, axis=-1)
    return hits.sum(-1) / present.sum(-1)


def _f1(sums: Floats) -> Floats:
    """Returns F1 of class 1, the second class: `_class_features` always counts 0 and 1, and no class precedes them."""
    hits, predicted, present = (part[..., 1] for part in np.split(sums, 3, axis=-1))
    return _ratio(2 * hits, predicted + present)


def _f1_macro(sums: Floats) -> Floats:
    hits, predicted, present = np.split(sums, 3, axis=-1)
    occurring = (predicted + present > 0).sum(-1)
    return _ratio(2 * hits, predicted + present).sum(-1) / occurring


def _matthews(sums: Floats) -> Floats:
    hits, predicted, present = np.split(sums, 3, axis=-1)
    total = present.sum(-1)
    covariance = hits.sum(-1) * total - (predicted * present).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (present**2).sum(-1))
    return _ratio(covariance, np.sqrt(spread))


def _moment_features(predictions: Floats, references: Floats) -> Floats:
    # Correlations do not change under centring, and small variances beside large means keep their precision.
    x = predictions - predictions.mean(axis=1, keepdims=True)
    y = np.broadcast_to(references - references.mean(), x.shape)
    return np.stack([x, y, x * x, y * y, x * y, np.ones_like(x)], axis=1)


def _pearson(sums: Floats) -> Floats:
    x, y, xx, yy, xy, n = np.moveaxis(sums, -1, 0)
    # A resample may repeat a single example, whose variance must be 0 in spite of rounding.
    x_spread, y_spread = (np.where(v > 1e-12 * q, v, 0.0) for v, q in ((xx - x * x / n, xx), (yy - y * y / n, yy)))
    return np.clip(_ratio(xy - x * y / n, np.sqrt(x_spread * y_spread)), -1.0, 1.0)


def _bleu(sums: Floats) -> Floats:
    """Returns corpus BLEU in [0, 1] with sacrebleu's default smoothing, from sums (..., 10) in the order of `bleu`."""
    length, reference, matching, total = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:10]
    # The m-th order without a match has a precision of 1 / (2^m · all).
    missing = np.cumsum(matching == 0, axis=-1)
    possible = total > 0
    precision = np.where(matching > 0, matching, 0.5**missing) / np.where(possible, total, 1.0)
    defined = possible.all(-1) & (matching > 0).any(-1)
    brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(length, 1e-9)))
    return np.where(defined, brevity * np.exp(np.log(precision).mean(-1)), 0.0)


MEAN = SumMetric(_mean_features, lambda sums: sums[..., 0] / sums[..., 1], from_statistics=True)
ACCURACY = SumMetric(_class_features, _accuracy)
F1 = SumMetric(_class_features, _f1)
F1_MACRO = SumMetric(_class_features, _f1_macro)
MATTHEWS = SumMetric(_class_features, _matthews)
PEARSON = SumMetric(_moment_features, _pearson)
BLEU = SumMetric(lambda statistics, _: np.moveaxis(statistics, -1, 1), _bleu, from_statistics=True, axes=1)
