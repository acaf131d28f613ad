"""The outcome of a comparison, and the rule that decides it.

The interval of the difference, method − baseline, at the level that `adjust` gives it, decides: the method is better or
worse where the interval excludes 0. A margin m is a difference that does not matter. With one, the method is also

- equivalent within m where the interval lies between −m and m: two one-sided tests (Schuirmann 1987, Journal of
  Pharmacokinetics and Biopharmaceutics 15);
- not worse by more than m where it lies above −m: non-inferiority (Piaggio et al. 2012, JAMA 308, CONSORT's extension),

and undecided otherwise. Each one-sided test has half the level, 2.5 % where Schuirmann takes 5 %, so that the same 95 %
interval shows all verdicts. The margin has to be chosen before the results are known.
"""

import math
from enum import Enum

from peftprune.errors import UsageError
from peftprune.stats.validation import at_least, share


class Verdict(Enum):
    """The outcome of a comparison with the baseline."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    NOT_WORSE = "not worse"
    UNDECIDED = "undecided"
    NOT_DISTINGUISHABLE = "not distinguishable"
    CANNOT_REACH_SIGNIFICANCE = "cannot reach significance"
    NOTHING_LEARNED = "nothing was learned"
    """Readers of a study decide it, not `verdict`: neither method learned anything."""


def verdict(
    difference: float,
    p: float,
    n_seeds: int,
    *,
    smallest_p: float = 0.0,
    comparisons: int = 1,
    alpha: float = 0.05,
    higher_is_better: bool = True,
    p_not_worse: float | None = None,
    p_equivalent: float | None = None,
) -> Verdict:
    """Returns the outcome of a comparison with the baseline, by the rule above.

    `CANNOT_REACH_SIGNIFICANCE` is decided before p is used: one seed gives no estimate of the variation between
    training runs, and a test whose smallest possible p, times the number of comparisons, exceeds alpha never rejects,
    however large the difference.

    Args:
        difference: method − baseline, in the metric.
        p: two-sided, adjusted for simultaneous comparisons (`holm`).
        n_seeds: number of paired runs.
        smallest_p: the smallest p that the test can give: `smallest_permutation_p(n)` for `paired_permutation` on n
            pairs, 2 / (1 + resamples) for `paired_bootstrap`, about 0.
        comparisons: how many p were adjusted together.
        alpha: the level.
        higher_is_better: the metric's direction.
        p_not_worse, p_equivalent: with a margin, the adjusted p of the tests that show the method not worse by more,
            and equivalent (the larger of both one-sided ones). They count where p leaves the difference open.

    Raises UsageError where difference or p is NaN or out of range, or a count is below 1.
    """
    at_least("n_seeds", n_seeds, 1)
    at_least("comparisons", comparisons, 1)
    share("alpha", alpha)
    for name, value, least, most in (("p", p, 0, 1), ("difference", difference, -math.inf, math.inf)):
        if math.isnan(value) or not least <= value <= most:
            raise UsageError.of(name, value, "is not the outcome of a test", "Leave out comparisons that were not made")
    if n_seeds == 1 or smallest_p * comparisons > alpha:
        return Verdict.CANNOT_REACH_SIGNIFICANCE
    if p <= alpha and difference != 0:
        return Verdict.BETTER if (difference > 0) == higher_is_better else Verdict.WORSE
    if p_equivalent is None or p_not_worse is None:
        return Verdict.NOT_DISTINGUISHABLE
    if p_equivalent <= alpha:
        return Verdict.EQUIVALENT
    return Verdict.NOT_WORSE if p_not_worse <= alpha else Verdict.UNDECIDED
