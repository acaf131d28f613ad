import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from peftprune.errors import UsageError
from peftprune.stats.validation import pair


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Returns the exact two-sided p of McNemar's test (1947) on the examples that only one of two models gets right.

    Under the null hypothesis each of these n examples belongs to either model with probability 1/2, so
    p = min(1, 2·P(X ≤ min(n_a, n_b))) with X binomial(n, 1/2). The test compares two trained models, not two methods:
    use it for each seed and not on pooled seeds, whose examples are not independent.

    Both arguments tell for each example whether a model is right (true or false, 1 or 0). p is 1 where the models are
    right on the same examples. Raises UsageError for different lengths, no examples, or values other than 0 and 1.
    """
    first, second = pair(correct_a, correct_b, dimensions=(1,), names="correct_a and correct_b")
    values = np.concatenate([first, second])
    odd = values[~np.isin(values, (0.0, 1.0))]
    if odd.size:
        cure = "Give True or False for each example"
        raise UsageError.of("correct_a and correct_b", float(odd[0]), "is neither right nor wrong", cure)
    only_a, only_b = int((first > second).sum()), int((first < second).sum())
    return min(1.0, 2.0 * float(binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
