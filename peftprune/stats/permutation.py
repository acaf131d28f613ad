"""The sign-flip test for pairs."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from peftprune.stats.validation import Floats, at_least, pair, share

_EXACT_PAIRS = 20
"""Up to this many pairs that differ, all 2^n sign patterns are enumerated (2^20 sums take 8 MB)."""

_CHUNK = 2**22
"""Entries of a block of random signs."""


def paired_permutation(a: ArrayLike, b: ArrayLike, *, resamples: int = 100_000, seed: int = 0) -> float:
    """Returns the two-sided p of the sign-flip test: how often exchangeable a and b differ this much in the mean.

    p = #{s ∈ {−1, 1}^n : |Σ s_i d_i| ≥ |Σ d_i|} / 2^n with d = a − b (Fisher 1935). Pairs without a difference have no
    effect. p is exact if at most 20 pairs differ. Otherwise `resamples` sign patterns are drawn and
    p = (1 + #) / (1 + resamples), which counts the observed pattern and is never 0 (Phipson & Smyth 2010).

    Both hold n scores in the same one- or two-dimensional shape: seeds, or tasks × seeds to pool them, in which case
    tasks should have one scale. p lies in [2^(1−n), 1], and is 1 for identical scores. Raises UsageError for different
    shapes, no pairs, or values that are not finite.
    """
    first, second = pair(a, b)
    at_least("resamples", resamples, 1)
    d = (first - second).ravel()
    total = float(d.sum())
    # Equal sums may differ by rounding; such ties count as equally extreme.
    threshold = abs(total) - 1e-9 * float(np.abs(d).sum())
    changed = d[d != 0]
    if len(changed) <= _EXACT_PAIRS:
        # The patterns that flip the last pair mirror the others.
        return float(np.mean(np.abs(total - 2 * _all_subsets(changed[:-1])[0]) >= threshold))
    flipped = np.concatenate([sums for sums, _ in _drawn(d, resamples, seed)])
    return (1 + int((np.abs(total - 2 * flipped) >= threshold).sum())) / (1 + resamples)


def permutation_interval(
    a: ArrayLike, b: ArrayLike, level: float = 0.05, *, resamples: int = 100_000, seed: int = 0
) -> tuple[float, float]:
    """Returns the ends of the differences δ that `paired_permutation` of a − δ and b does not reject at `level`.

    A pattern that flips the subset S is as extreme as the observed one exactly where δ lies between the means of d over
    S and over the other pairs (Hartigan 1969), so the ends are order statistics of these means. They are infinite where
    no difference between n pairs is significant at `level`. Raises UsageError as `paired_permutation`, or for a level
    outside (0, 1).
    """
    first, second = pair(a, b)
    d = (first - second).ravel()
    n, total = len(d), float(d.sum())
    share("level", level)
    if n <= _EXACT_PAIRS:
        sums, sizes = _all_subsets(d[:-1])
        patterns = len(sums)
        # The empty subset is never less extreme.
        sums, sizes = sums[1:], sizes[1:]
    else:
        patterns = 1 + at_least("resamples", resamples, 1)
        sums, sizes = (np.concatenate(parts) for parts in zip(*_drawn(d, resamples, seed), strict=True))
    k = math.floor(level * patterns + 1e-9)
    if not k:
        return -math.inf, math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.stack([sums / sizes, (total - sums) / (n - sizes)])
    # A pattern that flips no pair or all of them is extreme for every difference.
    means[:, (sizes == 0) | (sizes == n)] = [[-math.inf], [math.inf]]
    # Rounding must not separate a mean from 0 that `paired_permutation` counts as equal.
    means[np.abs(means) <= 1e-9 * np.abs(d).mean()] = 0.0
    low, high = np.partition(means.min(axis=0), k - 1)[k - 1], np.partition(means.max(axis=0), -k)[-k]
    return float(low), float(high)


def _drawn(d: Floats, resamples: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """Yields, in blocks, the sums and the sizes of random subsets of the differences."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(d))
    for start in range(0, resamples, rows):
        chosen = rng.integers(0, 2, size=(min(rows, resamples - start), len(d)), dtype=np.int8).astype(float)
        yield chosen @ d, chosen.sum(axis=1)


def _all_subsets(d: Floats) -> tuple[Floats, Floats]:
    """Returns the sums and the sizes of all subsets of the differences; the empty one comes first."""
    sums, sizes = np.zeros(1), np.zeros(1)
    for value in d:
        sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
    return sums, sizes


def smallest_permutation_p(n: int) -> float:
    """Returns the smallest p of `paired_permutation` for n ≥ 1 pairs: 2^(1−n), 0.0625 for 5 seeds and 0.03125 for 6."""
    return float(2.0 ** (1 - at_least("n", n, 1)))
