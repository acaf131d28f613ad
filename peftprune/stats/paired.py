"""The paired bootstrap: two methods on one task, over examples and seeds together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.stats.metric_sums import MEAN, SUM_METRICS, SumMetric
from peftprune.stats.validation import Floats, at_least, finite, pair, share

Metric = str | Callable[[Floats, Floats], float]
"""A name of `peftprune.stats.metrics.METRICS`, or (predictions (n,), references (n,)) to a number."""

_CHUNK = 2**22
"""Entries of a block of resampling counts: 32 MB."""


@dataclass(frozen=True)
class PairedDifference:
    """What `paired_bootstrap` found.

    Attributes:
        difference: mean over seeds of (a − b).
        low: lower end of the interval.
        high: its upper end.
        p: two-sided.
        probability: that a is truly larger: the share of replicates above 0, those at 0 counted half.
        confidence: of the interval.
        n_seeds: pairs of runs.
        n_examples: examples they were scored on.
        example_std: standard deviation, over examples, of one seed's per-example difference (for other metrics than a
            mean: of its linear approximation).
        common: share of that variance which is common to all seeds, in [0, 1]; the rest averages out over seeds. 1 for
            one seed, which cannot tell.
        seed_std: standard deviation of the true difference over seeds, apart from the noise of the examples; 0 for one
            seed, which cannot tell, and where the examples explain all variation.
    """

    difference: float
    low: float
    high: float
    p: float
    probability: float
    confidence: float
    n_seeds: int
    n_examples: int
    example_std: float
    common: float
    seed_std: float


def paired_bootstrap(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    references: ArrayLike | None = None,
    metric: Metric | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Is a better than b on this task? Resamples examples and seeds together.

    Each replicate draws n examples with replacement, the same for both methods and all seeds, and S seeds with
    replacement, as pairs. With D the observed difference, D_s that of seed s, and D(x), D_s(x) on resampled examples x:

        D* = D(x) + √V₊·u,    V₊ = max(0, V_seed·(S − 1)/χ²_{S−1} − V_int)

    where u is the mean of the drawn D_s less D, divided by its standard deviation. Plain resampling of two to five
    seeds, D(x) + (mean of the drawn D_s − D), finds far too many differences: the variance among S drawn values is
    (S − 1)/S of what it should be, and so few values hardly know their own spread. Therefore V_seed = var(D_s)/S is
    taken with n − 1, and is divided in each replicate by a χ² draw, which makes a normal deviate Student's t with S − 1
    degrees of freedom. V_seed also holds noise of the examples, which D(x) carries already: V_int =
    (mean_s var D_s(x) − var D(x))/(S − 1), the interaction of seeds and examples in a crossed design (Cornfield & Tukey
    1956), comes off, within the replicate as a generalised pivot has it (Weerahandi 1993). With many seeds what is
    left is the plain bootstrap.

    The interval holds the percentiles of D*; p = 2·(1 + the smaller of #{D* ≤ 0} and #{D* ≥ 0})/(1 + resamples), at
    most 1, so that p < 1 − confidence just where the interval leaves out 0 (up to one replicate).

    One seed can only speak of the two trained models: the interval then covers new examples, not new training runs.

    Args:
        scores_a: seeds × examples (or examples, for one seed): what a got on each example, for a metric that is their
            mean, such as accuracy from 0 and 1. With `metric`, a's predictions; for "bleu" (seeds × examples × 10) the
            statistics of each example, see `peftprune.stats.text_metrics.statistics`.
        scores_b: the other method's, with the same seeds and examples in the same order.
        references: with `metric`, the n true answers; none for "bleu".
        metric: None for the mean of scores. A metric's name (all but "spearman" are vectorised), or a function of
            (predictions, references), which is called 2·S times a replicate.
        confidence: of the interval, strictly between 0 and 1.
        resamples: number of replicates; p is never under 2/(1 + resamples). Time grows with it, memory does not.
        seed: of the resampling.

    Returns:
        A `PairedDifference`. Identical input gives a difference of 0, the interval (0, 0) and p = 1.

    Raises:
        UsageError: shapes that do not fit, values that are not finite, fewer than two examples, a metric without
            references or the reverse, or one that is not known.
    """
    sums = SUM_METRICS.get(metric) if isinstance(metric, str) else None
    extra = int(sums is not None and sums.of_statistics)
    a, b = pair(scores_a, scores_b, dimensions=(1 + extra, 2 + extra), names="scores_a and scores_b")
    models = np.concatenate([scores if scores.ndim == 2 + extra else scores[None] for scores in (a, b)])
    n_seeds, n_examples = len(models) // 2, models.shape[1]
    if n_examples < 2:
        raise UsageError.of("scores_a and scores_b", a.shape, "hold fewer than two examples", "Give seeds × examples")
    truth = np.zeros(n_examples) if extra and references is None else _references(references, metric, n_examples)
    tail = (1 - share("confidence", confidence)) / 2
    at_least("resamples", resamples, 1)

    rng = np.random.default_rng(seed)
    values, resampled = _values(models, truth, metric, resamples, rng)
    by_seed = values[:n_seeds] - values[n_seeds:]
    resampled_by_seed = resampled[:, :n_seeds] - resampled[:, n_seeds:]
    over_examples = resampled_by_seed.mean(axis=1)
    parts = _variances(by_seed, resampled_by_seed)
    replicates = over_examples + _seed_part(by_seed, parts.interaction, resamples, rng)

    difference = float(by_seed.mean())
    low, high = np.quantile(replicates, (tail, 1 - tail))
    below, above = int((replicates <= 0).sum()), int((replicates >= 0).sum())
    return PairedDifference(
        difference=difference,
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (1 + min(below, above)) / (1 + resamples)),
        probability=float((above + resamples - below) / (2 * resamples)),
        confidence=confidence,
        n_seeds=n_seeds,
        n_examples=n_examples,
        example_std=math.sqrt(n_examples * parts.one_seed),
        common=parts.common,
        seed_std=math.sqrt(n_seeds * parts.seed_excess),
    )


def _references(references: ArrayLike | None, metric: Metric | None, n: int) -> Floats | None:
    if (metric is None) != (references is None):
        given = "a metric without references" if references is None else "references without a metric"
        cure = "Give both, with predictions as scores; or neither, with scores per example"
        raise UsageError.of("metric", metric, f"leaves {given}", cure)
    if references is None:
        return None
    truth = finite("references", references)
    if len(truth) != n:
        raise UsageError.of("references", len(truth), f"is not the number of examples, {n}", "Give one per example")
    return truth


def _values(
    models: Floats, truth: Floats | None, metric: Metric | None, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """The metric of each model (models,), and on resampled examples (resamples, models)."""
    if metric is None:
        return _by_sums(models, np.zeros(models.shape[1]), MEAN, resamples, rng)
    assert truth is not None
    if isinstance(metric, str) and metric in SUM_METRICS:
        return _by_sums(models, truth, SUM_METRICS[metric], resamples, rng)
    return _by_calls(models, truth, _function(metric) if isinstance(metric, str) else metric, resamples, rng)


def _function(name: str) -> Callable[[Floats, Floats], float]:
    from peftprune.stats.metrics import check_metrics, compute_metrics

    check_metrics([name])
    return lambda predictions, references: compute_metrics([name], predictions, references)[name]


def _by_sums(
    models: Floats, truth: Floats, metric: SumMetric, resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    features = metric.features(models, truth)
    n_models, k, n = features.shape
    # Examples with the same features are interchangeable, so it is enough to draw how many of each kind occur. Right
    # and wrong answers leave a few dozen kinds, whatever the number of examples.
    kinds, counts = np.unique(features.reshape(n_models * k, n), axis=1, return_counts=True)

    def evaluate(weights: Floats) -> Floats:
        return metric.evaluate((weights @ kinds.T).reshape(*weights.shape[:-1], n_models, k))

    rows = max(1, _CHUNK // len(counts))
    chunks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    drawn = [evaluate(rng.multinomial(n, counts / n, size=size).astype(float)) for size in chunks]
    return evaluate(counts.astype(float)), np.concatenate(drawn)


def _by_calls(
    models: Floats,
    truth: Floats,
    metric: Callable[[Floats, Floats], float],
    resamples: int,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    resampled = np.empty((resamples, len(models)))
    for i in range(resamples):
        drawn = rng.integers(0, len(truth), size=len(truth))
        resampled[i] = [metric(predictions[drawn], truth[drawn]) for predictions in models]
    return np.array([metric(predictions, truth) for predictions in models], dtype=float), resampled


@dataclass(frozen=True)
class _Variances:
    """Of the difference: `one_seed` over examples, the `common` share of it, V_int, and V_seed − V_int or 0."""

    one_seed: float
    common: float
    interaction: float
    seed_excess: float


def _variances(by_seed: Floats, resampled_by_seed: Floats) -> _Variances:
    n_seeds = len(by_seed)
    if len(resampled_by_seed) < 2:
        return _Variances(0.0, 1.0, 0.0, 0.0)
    one_seed = float(resampled_by_seed.var(axis=0, ddof=1).mean())
    if n_seeds == 1:
        return _Variances(one_seed, 1.0, 0.0, 0.0)
    averaged = float(resampled_by_seed.mean(axis=1).var(ddof=1))
    interaction = max(0.0, (one_seed - averaged) / (n_seeds - 1))
    excess = max(0.0, float(by_seed.var(ddof=1)) / n_seeds - interaction)
    common = 1.0 - interaction * n_seeds / one_seed if one_seed > 0 else 1.0
    return _Variances(one_seed, min(1.0, max(0.0, common)), interaction, excess)


def _seed_part(by_seed: Floats, interaction: float, resamples: int, rng: np.random.Generator) -> Floats:
    """√V₊·u, one a replicate; 0 for one seed and where all seeds differ by the same."""
    n = len(by_seed)
    plain_variance = float(by_seed.var()) / n
    if plain_variance == 0:
        return np.zeros(resamples)
    drawn = by_seed[rng.integers(0, n, size=(resamples, n))].mean(axis=1) - by_seed.mean()
    pivot = by_seed.var(ddof=1) / n * (n - 1) / rng.chisquare(n - 1, size=resamples)
    return np.asarray(np.sqrt(np.maximum(0.0, pivot - interaction) / plain_variance) * drawn)
