"""Comparisons of many methods over many tasks: ranks, Friedman's test and Nemenyi's critical difference."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from peftprune.errors import UsageError
from peftprune.stats.validation import Floats, at_least, finite, share


def average_ranks(scores: ArrayLike, higher_is_better: bool = True) -> Floats:
    """Returns each method's rank (1 is best) averaged over tasks; methods that tie on a task get their mean rank.

    `scores` are tasks × methods; tasks may have different scales, but one direction. Raises UsageError for a different
    shape, or values that are not finite.
    """
    values = finite("scores", scores, (2,))
    ranks = rankdata(-values if higher_is_better else values, axis=1)
    return np.asarray(ranks.mean(axis=0), dtype=float)


class FriedmanTest(NamedTuple):
    """Friedman's chi-squared `statistic` and its `p`."""

    statistic: float
    p: float


def friedman(scores: ArrayLike) -> FriedmanTest:
    """Tests whether any of the methods differ: Friedman's rank test (1937) with correction for ties.

    With ranks r_ij and their sums R_j, χ² = (k − 1)·Σ_j (R_j − N(k + 1)/2)² / Σ_ij (r_ij − (k + 1)/2)² is approximately
    chi-squared with k − 1 degrees of freedom. With fewer than about 10 tasks this is rough and conservative.

    `scores` are N tasks × k methods. Where the methods tie on every task, the statistic is 0 and p is 1. Raises
    UsageError for fewer than 3 methods or 2 tasks, or values that are not finite.
    """
    values = finite("scores", scores, (2,))
    if values.shape[0] < 2 or values.shape[1] < 3:
        cure = "Give two tasks and three methods; compare two methods with paired_permutation"
        raise UsageError.of("scores", values.shape, "is too small", cure)
    if (values == values[:, :1]).all():
        return FriedmanTest(0.0, 1.0)
    result = friedmanchisquare(*values.T)
    return FriedmanTest(float(result.statistic), float(result.pvalue))


def critical_difference(n_methods: int, n_datasets: int, alpha: float = 0.05) -> float:
    """Returns Nemenyi's critical difference: two methods differ if their average ranks differ by more.

    CD = q_α/√2 · √(k(k + 1)/(6N)), q_α the upper α point of the studentized range of k normal values with infinitely
    many degrees of freedom, k methods and N datasets (Demšar 2006). It includes the correction for all pairs. If it
    exceeds k − 1, no pair can differ. Raises UsageError for k < 2, N < 1, or alpha outside (0, 1).
    """
    k, n = at_least("n_methods", n_methods, 2), at_least("n_datasets", n_datasets, 1)
    q = float(studentized_range.ppf(1 - share("alpha", alpha), k, math.inf))
    return q / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
