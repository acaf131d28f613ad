import numpy as np
from numpy.typing import ArrayLike, NDArray

from peftprune.errors import UsageError


def pareto_set(params: ArrayLike, quality: ArrayLike, *, higher_is_better: bool = True) -> NDArray[np.bool_]:
    """Returns which points are not dominated by one with at most their parameters and at least their quality.

    A point dominates another if one of the two inequalities is strict; of equal points, either all or none are in the
    set. A `quality` of NaN, as for a failed run, is never in it. Raises UsageError where lengths differ.
    """
    size = np.asarray(params, dtype=float)
    good = np.asarray(quality, dtype=float) * (1 if higher_is_better else -1)
    if size.ndim != 1 or size.shape != good.shape:
        raise UsageError.of("quality", good.shape, "has another shape than params", f"Give {size.shape}")
    # Row i, column j: whether j dominates i. Comparisons with NaN are false.
    no_worse = (size[None] <= size[:, None]) & (good[None] >= good[:, None])
    better = (size[None] < size[:, None]) | (good[None] > good[:, None])
    return ~(no_worse & better).any(axis=1) & ~np.isnan(size) & ~np.isnan(good)
