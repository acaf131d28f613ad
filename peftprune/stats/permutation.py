"""The sign-flip test for pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from peftprune.stats.validation import Floats, at_least, pair

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
    d = np.abs((first - second).ravel())  # the signs are flipped anyway
    observed = abs(float((first - second).sum()))
    # Equal sums may differ by rounding; such ties count as equally extreme.
    threshold = observed - 1e-9 * float(d.sum())
    d = d[d > 0]
    if len(d) <= _EXACT_PAIRS:
        return float(np.mean(np.abs(_all_sums(d)) >= threshold))
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(d))
    extreme = 0
    for start in range(0, resamples, rows):
        signs = rng.integers(0, 2, size=(min(rows, resamples - start), len(d)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ d) >= threshold).sum())
    return (1 + extreme) / (1 + resamples)


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
