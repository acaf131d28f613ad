"""Mean, standard deviation and interval of one method's scores."""

import math
from typing import NamedTuple

from numpy.typing import ArrayLike
from scipy.stats import t

from peftprune.stats.validation import finite, share


class Summary(NamedTuple):
    """The summary of one method: `mean`, `std` (n − 1), the interval's ends `low` and `high`, and `n`."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def summary(scores: ArrayLike, confidence: float = 0.95) -> Summary:
    """Returns mean, standard deviation (n − 1) and Student's t interval of the mean: mean ± t_{n−1}·std/√n.

    The t interval has its nominal coverage for normal scores at any n ≥ 2; a bootstrap of a few seeds does not.

    std, low and high are NaN for a single score. Raises UsageError for no scores, a score that is not finite, or a
    confidence outside (0, 1).
    """
    values = finite("scores", scores)
    tail = (1 - share("confidence", confidence)) / 2
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Summary(mean, math.nan, math.nan, math.nan, 1)
    std = float(values.std(ddof=1))
    half = float(t.ppf(1 - tail, n - 1)) * std / math.sqrt(n)
    return Summary(mean, std, mean - half, mean + half, n)
