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

    Args:
        a: scores of one method, n pairs in any one- or two-dimensional shape (seeds, or tasks × seeds to pool them;
            pooled tasks should have one scale).
        b: scores of the other method, in the same shape.
        resamples: number of patterns drawn where there are too many to enumerate.
        seed: of that draw.

    Returns:
        p in [2^(1−n), 1]; 1 for identical scores.

    Raises:
        UsageError: different shapes, no pairs, or values that are not finite.
    """
    first, second = pair(a, b)
    at_least("resamples", resamples, 1)
    d = (first - second).ravel()
    total = float(d.sum())
    # Equal sums may differ by rounding; such ties count as equally extreme.
    threshold = abs(total) - 1e-9 * float(np.abs(d).sum())
    changed = d[d != 0]
    if len(changed) <= _EXACT_PAIRS:
        return float(np.mean(np.abs(_all_sums(changed)) >= threshold))
    flipped = np.concatenate([sums for sums, _ in _drawn(d, resamples, seed)])
    return (1 + int((np.abs(total - 2 * flipped) >= threshold).sum())) / (1 + resamples)


def permutation_interval(
    a: ArrayLike, b: ArrayLike, level: float = 0.05, *, resamples: int = 100_000, seed: int = 0
) -> tuple[float, float]:
    """Returns the ends of the differences δ that `paired_permutation` of a − δ and b does not reject at `level`.

    A pattern that flips the subset S is as extreme as the observed one exactly where δ lies between the means of d over
    S and over the other pairs (Hartigan 1969), so the ends are order statistics of these means.

    Returns:
        (low, high); infinite where no difference between n pairs is significant at `level`.

    Raises:
        UsageError: as `paired_permutation`, or a level outside (0, 1).
    """
    first, second = pair(a, b)
    d = (first - second).ravel()
    n, total = len(d), float(d.sum())
    share("level", level)
    if n <= _EXACT_PAIRS:
        # Sums and sizes of the subsets without the last pair; the empty one, which is never less extreme, comes first.
        sums, sizes = np.zeros(1), np.zeros(1)
        for value in d[:-1]:
            sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
        patterns = len(sums)
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


def _all_sums(d: Floats) -> Floats:
    """Returns Σ s_i d_i for the 2^(n−1) sign patterns with s_1 = 1; the others mirror them."""
    sums = d[:1] if len(d) else np.zeros(1)
    for value in d[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def smallest_permutation_p(n: int) -> float:
    """Returns the smallest p of `paired_permutation` for n pairs: 2^(1−n), so 0.0625 for 5 seeds and 0.03125 for 6.

    Raises:
        UsageError: fewer than one pair.
    """
    return float(2.0 ** (1 - at_least("n", n, 1)))
