"""Effect sizes."""

import math

from numpy.typing import ArrayLike

from peftprune.stats.validation import finite, pair


def effect_size(a: ArrayLike, b: ArrayLike, *, corrected: bool = True) -> float:
    """Returns the mean difference of pairs in standard deviations: Hedges' g_z, or Cohen's d_z if not `corrected`.

    d_z = mean(a − b) / std(a − b), with n − 1. It overestimates for few pairs; g_z = J·d_z with
    J = Γ(m/2) / (√(m/2)·Γ((m − 1)/2)), m = n − 1, corrects that (Hedges 1981) and needs 3 pairs.

    `a` are n scores, in any one- or two-dimensional shape, and `b` their partners. The result is positive where a is
    larger, 0 for identical scores, ±inf where all differences are equal, and NaN for different scores of fewer than 3
    pairs (2 if not `corrected`). Raises UsageError for different shapes, no pairs, or values that are not finite.
    """
    first, second = pair(a, b)
    d = (first - second).ravel()
    mean = float(d.mean())
    if not d.any():
        return 0.0
    if len(d) < 2 or (corrected and len(d) < 3):
        return math.nan
    spread = float(d.std(ddof=1))
    # The spread of a constant difference consists of rounding errors.
    if spread <= 1e-12 * abs(mean):
        return math.copysign(math.inf, mean)
    m = len(d) - 1
    factor = math.exp(math.lgamma(m / 2) - math.lgamma((m - 1) / 2)) / math.sqrt(m / 2) if corrected else 1.0
    return mean / spread * factor


def probability_of_improvement(a: ArrayLike, b: ArrayLike) -> float:
    """Returns the probability that a run of a is better: P(a > b) + P(a = b)/2 over all pairs (Agarwal et al. 2021).

    Scores are runs, or runs × tasks; with tasks, the result is the mean over tasks. The numbers of runs may differ. The
    result lies in [0, 1] and is 0.5 for identical scores. Raises UsageError for no scores, values that are not finite,
    or different numbers of tasks.
    """
    first, second = finite("a", a, (1, 2)), finite("b", b, (1, 2))
    pair(first[:1], second[:1])  # one task column for each
    wins = first[:, None] > second[None]
    ties = first[:, None] == second[None]
    return float((wins + 0.5 * ties).mean())
