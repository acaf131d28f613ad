"""Slow twins of `peftprune.stats`: enumeration and definitions, plain lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence


def paired_permutation(a: Sequence[float], b: Sequence[float]) -> float:
    """All 2^n sign patterns, one after another."""
    d = [x - y for x, y in zip(a, b, strict=True)]
    observed = abs(sum(d))
    extreme = 0
    for signs in itertools.product((-1, 1), repeat=len(d)):
        if abs(sum(s * x for s, x in zip(signs, d, strict=True))) >= observed - 1e-9:
            extreme += 1
    return extreme / 2 ** len(d)


def mcnemar(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> float:
    """All ways to give the n examples on which the models disagree to one of them."""
    only_a = sum(x and not y for x, y in zip(correct_a, correct_b, strict=True))
    only_b = sum(y and not x for x, y in zip(correct_a, correct_b, strict=True))
    n = only_a + only_b
    extreme = 0
    for k in range(n + 1):
        if abs(k - n / 2) >= abs(only_a - n / 2):
            extreme += math.comb(n, k)
    return extreme / 2**n


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p's own adjusted value: the largest step among all that are no larger than it."""
    made = [p for p in p_values if not math.isnan(p)]
    adjusted = []
    for p in p_values:
        if math.isnan(p):
            adjusted.append(p)
            continue
        steps = [q * (len(made) - sum(other < q for other in made)) for q in made if q <= p]
        adjusted.append(min(1.0, max(steps)))
    return adjusted


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> float:
    """Each run of the one against each run of the other."""
    won = 0.0
    for x in a:
        for y in b:
            won += 1.0 if x > y else 0.5 if x == y else 0.0
    return won / (len(a) * len(b))


def task_ranks(scores: Sequence[float]) -> list[float]:
    """Ranks of one task, the highest score first: 1 + those ahead + half of the others that tie."""
    ranks = []
    for i in range(len(scores)):
        ahead = sum(other > scores[i] for other in scores)
        ties = sum(scores[j] == scores[i] for j in range(len(scores)) if j != i)
        ranks.append(1 + ahead + ties / 2)
    return ranks


def average_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """tasks × methods to one rank a method."""
    ranks = [task_ranks(row) for row in scores]
    return [sum(row[j] for row in ranks) / len(ranks) for j in range(len(ranks[0]))]


def friedman_statistic(scores: Sequence[Sequence[float]]) -> float:
    """(k − 1)·Σ (R_j − N(k + 1)/2)² / Σ (r_ij − (k + 1)/2)²."""
    ranks = [task_ranks(row) for row in scores]
    n, k = len(ranks), len(ranks[0])
    between = sum((sum(row[j] for row in ranks) - n * (k + 1) / 2) ** 2 for j in range(k))
    within = sum((r - (k + 1) / 2) ** 2 for row in ranks for r in row)
    return (k - 1) * between / within


def resampled_differences(
    a: Sequence[Sequence[float]],
    b: Sequence[Sequence[float]],
    references: Sequence[float],
    metric: Callable[[list[float], list[float]], float],
) -> list[list[float]]:
    """Per-seed differences for each of the n^n resamples of the examples."""
    n = len(references)
    rows = []
    for drawn in itertools.product(range(n), repeat=n):
        truth = [references[i] for i in drawn]
        row = []
        for one, other in zip(a, b, strict=True):
            row.append(metric([one[i] for i in drawn], truth) - metric([other[i] for i in drawn], truth))
        rows.append(row)
    return rows


def crossed_variances(d: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(examples, seeds, interaction) parts of the variance of the mean of d, seeds × examples, from the mean squares.

    Two-way random effects without replication: V_ex = (N − 1)/N·MS_ex/(S·N), as a bootstrap has it,
    V_seed = MS_seed/(S·N), V_int = (N − 1)/N·MS_int/(S·N).
    """
    s, n = len(d), len(d[0])
    total = sum(sum(row) for row in d) / (s * n)
    by_seed = [sum(row) / n for row in d]
    by_example = [sum(d[i][j] for i in range(s)) / s for j in range(n)]
    ms_seed = n * sum((m - total) ** 2 for m in by_seed) / (s - 1)
    ms_example = s * sum((m - total) ** 2 for m in by_example) / (n - 1)
    ms_interaction = sum((d[i][j] - by_seed[i] - by_example[j] + total) ** 2 for i in range(s) for j in range(n)) / (
        (s - 1) * (n - 1)
    )
    shrink = (n - 1) / n
    return shrink * ms_example / (s * n), ms_seed / (s * n), shrink * ms_interaction / (s * n)


def crossed(levels: Sequence[float], fractions: Sequence[float]) -> list[float]:
    """The chance that normal statistics of a Brownian motion have crossed a two-sided bound by each look."""
    import numpy as np
    from scipy.stats import multivariate_normal, norm

    bounds, t = norm.isf(np.array(levels) / 2), np.array(fractions)
    found = []
    for k in range(1, len(levels) + 1):
        correlation = np.sqrt(np.minimum.outer(t[:k], t[:k]) / np.maximum.outer(t[:k], t[:k]))
        inside = multivariate_normal(np.zeros(k), correlation, maxpts=200_000, abseps=1e-7, releps=1e-7)
        found.append(1 - float(inside.cdf(bounds[:k], lower_limit=-bounds[:k], rng=np.random.default_rng(0))))
    return found
