"""Comparisons of many methods over many tasks: ranks, Friedman's test and Nemenyi's critical difference."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.stats.validation import Floats, at_least, finite, share


def average_ranks(scores: ArrayLike, higher_is_better: bool = True) -> Floats:
    """Returns each method's rank (1 is best) averaged over tasks; methods that tie on a task get their mean rank.

    Args:
        scores: tasks × methods; tasks may have different scales.
        higher_is_better: the direction, the same for all tasks.

    Returns:
        One rank per method, in [1, methods]; they sum to methods·(methods + 1)/2.

    Raises:
        UsageError: a different shape, or values that are not finite.
    """
    from scipy.stats import rankdata

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

    Args:
        scores: N tasks × k ≥ 3 methods.

    Returns:
        The statistic (at least 0) and p in [0, 1]; 0 and 1 where the methods tie on every task.

    Raises:
        UsageError: fewer than 3 methods or 2 tasks, or values that are not finite.
    """
    from scipy.stats import friedmanchisquare

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
    many degrees of freedom (Demšar 2006). It includes the correction for all pairs.

    Args:
        n_methods: k ≥ 2.
        n_datasets: N ≥ 1.
        alpha: strictly between 0 and 1.

    Returns:
        A difference of ranks, above 0. If it exceeds k − 1, no pair can differ.

    Raises:
        UsageError: a count that is too small, or alpha outside (0, 1).
    """
    from scipy.stats import studentized_range

    k, n = at_least("n_methods", n_methods, 2), at_least("n_datasets", n_datasets, 1)
    q = float(studentized_range.ppf(1 - share("alpha", alpha), k, math.inf))
    return q / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
