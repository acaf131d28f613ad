"""The paired bootstrap: two methods on one task, over examples and seeds together."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from peftprune.errors import UsageError
from peftprune.stats.resampling import MetricLike, check_references, example_axes, resample
from peftprune.stats.validation import Floats, at_least, pair, share


@dataclass(frozen=True)
class PairedDifference:
    """The result of `paired_bootstrap`.

    Attributes:
        difference: mean over seeds of (a − b).
        low, high: the ends of the interval; infinite where the replicates are too few for it. p: two-sided.
        confidence: of the interval.
        n_seeds: pairs of runs. n_examples: examples that they were scored on.
        example_std: standard deviation, over examples, of one seed's per-example difference (of its linear
            approximation, for a metric that is not a mean).
        common: share of that variance that all seeds have in common, in [0, 1]; 1 for a single seed.
        seed_std: standard deviation of the true difference over seeds, without the examples' noise; 0 for one seed.
        replicates: D*, in ascending order.
    """

    difference: float
    low: float
    high: float
    p: float
    confidence: float
    n_seeds: int
    n_examples: int
    example_std: float
    common: float
    seed_std: float
    replicates: Floats = field(repr=False, compare=False)

    def interval(self, level: float) -> tuple[float, float]:
        """Returns the ends of the differences that the test does not reject at `level`; see `paired_bootstrap`."""
        return _interval(self.replicates, level)

    def p_above(self, value: float) -> float:
        """Returns twice the p of the one-sided test that shows the difference to be above `value`, at most 1.

        It is at most `level` exactly where the lower end of `interval(level)` is above `value`.
        """
        return self._doubled(self.replicates <= value)

    def p_below(self, value: float) -> float:
        """Returns twice the p of the one-sided test that shows the difference to be below `value`; see `p_above`."""
        return self._doubled(self.replicates >= value)

    def _doubled(self, against: NDArray[np.bool_]) -> float:
        return min(1.0, 2 * (1 + int(against.sum())) / (1 + len(self.replicates)))


def paired_bootstrap(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    references: ArrayLike | None = None,
    metric: MetricLike | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Tests whether a is better than b on one task by resampling examples and seeds together.

    Each replicate draws n examples with replacement, the same for both methods and all seeds, and S seeds with
    replacement, as pairs. With D the observed difference, D_s that of seed s, and D(x), D_s(x) on resampled examples x:

        D* = D(x) + √V₊·u,    V₊ = max(0, V_seed·(S − 1)/χ²_{S−1} − V_int)

    where u is the mean of the drawn D_s minus D, divided by its standard deviation. Plain resampling of two to five
    seeds, D(x) + (mean of the drawn D_s − D), rejects far too often: the variance among S drawn values is (S − 1)/S of
    the true one, and few values estimate their own spread badly. Therefore V_seed = var(D_s)/S uses n − 1, and each
    replicate divides it by a χ² draw, which turns a normal deviate into Student's t with S − 1 degrees of freedom.
    V_seed also contains noise of the examples, which D(x) includes already: the interaction of seeds and examples in a
    crossed design, V_int = (mean_s var D_s(x) − var D(x))/(S − 1) (Cornfield & Tukey 1956), is subtracted within the
    replicate, as in a generalised pivot (Weerahandi 1993). With many seeds the plain bootstrap remains.

    A difference δ has p(δ) = 2·(1 + the smaller of #{D* ≤ δ} and #{D* ≥ δ})/(1 + resamples), at most 1. p is p(0), and
    the interval contains the δ with p(δ) > 1 − confidence: its ends are order statistics of D*, and it excludes 0
    exactly where p ≤ 1 − confidence.

    With one seed the result concerns the two trained models only: the interval covers examples, not training runs.

    Args:
        scores_a: seeds × examples (or examples, for one seed): the scores of a, for a metric that is their mean, such
            as accuracy from 0 and 1. With `metric`, its predictions; for a metric of generated text, each example's
            `Metric.statistics` (for "bleu" seeds × examples × 10).
        scores_b: those of b, with the same seeds and examples in the same order.
        references: with `metric`, the n true answers; none for generated text.
        metric: None for the mean of scores; a metric's name (all but "spearman" are vectorised); or a function of
            (predictions, references), which is called 2·S times a replicate.
        confidence: of the interval, strictly between 0 and 1.
        resamples: number of replicates; p is at least 2/(1 + resamples). Time grows with it, memory does not.
        seed: of the resampling.

    Identical inputs give 0, the interval (0, 0) and p = 1. Raises UsageError for shapes that do not fit, values that
    are not finite, fewer than two examples, a metric without references or the reverse, or an unknown metric.
    """
    one_seed = 1 + example_axes(metric)
    a, b = pair(scores_a, scores_b, dimensions=(one_seed, one_seed + 1), names="scores_a and scores_b")
    models = np.concatenate([scores[None] if scores.ndim == one_seed else scores for scores in (a, b)])
    n_examples = models.shape[1]
    if n_examples < 2:
        raise UsageError.of("scores_a and scores_b", a.shape, "hold fewer than two examples", "Give seeds × examples")
    truth = check_references(references, metric, n_examples)
    share("confidence", confidence)
    at_least("resamples", resamples, 1)

    rng = np.random.default_rng(seed)
    values, resampled = resample(models, truth, metric, resamples, rng)
    return from_resamples(values, resampled, n_examples, rng, confidence)


def from_resamples(
    values: Floats, resampled: Floats, n_examples: int, rng: np.random.Generator, confidence: float = 0.95
) -> PairedDifference:
    """Returns the result of `paired_bootstrap` from the metric of each model on `n_examples`.

    `values` are those of the S models of a and then of b, (2·S,), and `resampled` the same on resampled examples,
    (resamples, 2·S). `rng` draws the seeds.
    """
    n_seeds, resamples = len(values) // 2, len(resampled)
    by_seed = values[:n_seeds] - values[n_seeds:]
    resampled_by_seed = resampled[:, :n_seeds] - resampled[:, n_seeds:]
    over_examples = resampled_by_seed.mean(axis=1)
    parts = _variances(by_seed, resampled_by_seed)
    replicates = np.sort(over_examples + _seed_part(by_seed, parts.interaction, resamples, rng))
    low, high = _interval(replicates, 1 - confidence)
    below, above = int((replicates <= 0).sum()), int((replicates >= 0).sum())
    return PairedDifference(
        difference=float(by_seed.mean()),
        low=low,
        high=high,
        p=min(1.0, 2 * (1 + min(below, above)) / (1 + resamples)),
        confidence=confidence,
        n_seeds=n_seeds,
        n_examples=n_examples,
        example_std=math.sqrt(n_examples * parts.one_seed),
        common=parts.common,
        seed_std=math.sqrt(n_seeds * parts.seed_excess),
        replicates=replicates,
    )


def _interval(replicates: Floats, level: float) -> tuple[float, float]:
    # The rounding of 1 − confidence must not cost a replicate.
    k = math.floor(level * (1 + len(replicates)) / 2 + 1e-9)
    return (float(replicates[k - 1]), float(replicates[-k])) if k else (-math.inf, math.inf)


class _Variances(NamedTuple):
    """Variances of the difference: `one_seed` over examples, its `common` share, V_int, and max(0, V_seed − V_int)."""

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
    """Returns √V₊·u for each replicate; 0 for one seed, and where all seeds have the same difference."""
    n = len(by_seed)
    plain_variance = float(by_seed.var()) / n
    if plain_variance == 0:
        return np.zeros(resamples)
    drawn = by_seed[rng.integers(0, n, size=(resamples, n))].mean(axis=1) - by_seed.mean()
    pivot = by_seed.var(ddof=1) / n * (n - 1) / rng.chisquare(n - 1, size=resamples)
    return np.asarray(np.sqrt(np.maximum(0.0, pivot - interaction) / plain_variance) * drawn)
