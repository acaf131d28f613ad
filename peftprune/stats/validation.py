"""Checks of inputs that the statistics share."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from peftprune.errors import UsageError

Floats = NDArray[np.float64]


def finite(name: str, values: ArrayLike, dimensions: tuple[int, ...] = (1,)) -> Floats:
    """Returns `values` as floats. Raises UsageError for no values, other dimensions, or a value that is not finite."""
    array = np.asarray(values, dtype=float)
    if array.ndim not in dimensions or not array.size:
        wanted = " or ".join(str(n) for n in dimensions)
        raise UsageError.of(name, array.shape, "is not a valid shape", f"Give {wanted} dimension(s), not empty")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        cure = "Leave out failed runs and their partners in the other method"
        raise UsageError.of(name, f"{bad} of {array.size} values", "are missing or not finite", cure)
    return array


def pair(
    a: ArrayLike, b: ArrayLike, dimensions: tuple[int, ...] = (1, 2), names: str = "a and b"
) -> tuple[Floats, Floats]:
    """Returns both as floats, whose entries are pairs. Raises UsageError as `finite` does, or for different shapes."""
    first, second = finite(names, a, dimensions), finite(names, b, dimensions)
    if first.shape != second.shape:
        cure = "Compare the seeds, tasks and examples that both have"
        raise UsageError.of(names, (first.shape, second.shape), "do not have the same shape", cure)
    return first, second


def share(name: str, value: float) -> float:
    """Returns a number strictly between 0 and 1. Raises UsageError for any other."""
    if not 0 < value < 1:
        raise UsageError.of(name, value, "is not between 0 and 1", "Give 0.05 for a level, 0.95 for a confidence")
    return float(value)


def at_least(name: str, value: int, least: int) -> int:
    """Returns a count of at least `least`. Raises UsageError for a smaller one, or one that is not a whole number."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise UsageError.of(name, value, "is too small or not a whole number", f"Give at least {least}")
    return int(value)
