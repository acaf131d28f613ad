"""Checked inputs as arrays; errors name the field."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from peftprune.errors import UsageError

Floats = NDArray[np.float64]


def not_empty(field: str, values: Any) -> None:
    if len(values) == 0:
        raise UsageError.of(field, list(values), "is empty", "Give at least one")


def column(field: str, values: ArrayLike, n: int) -> Floats:
    """Returns `n` values, one per label."""
    found = _floats(values)
    if found.shape != (n,):
        raise UsageError.of(field, found.shape, "does not fit the labels", f"Give {n}, one per label")
    return found


def grid(field: str, values: ArrayLike, rows: tuple[str, int], columns: tuple[str, int]) -> Floats:
    """Returns values over rows and columns, each given as (name, number); masked ones become NaN."""
    found = _floats(values)
    if found.shape != (rows[1], columns[1]):
        cure = f"There are {rows[1]} {rows[0]} and {columns[1]} {columns[0]}"
        raise UsageError.of(field, found.shape, f"is not {rows[0]} × {columns[0]}", cure)
    return found


def forbid(field: str, values: Floats, wrong: NDArray[np.bool_], problem: str, cure: str) -> None:
    """Raises UsageError with the first value that is wrong."""
    if wrong.any():
        raise UsageError.of(field, float(values[wrong][0]), problem, cure)


def in_unit_interval(field: str, values: Floats) -> None:
    forbid(field, values, (values < 0) | (values > 1), "is outside 0 … 1", "Give shares, not percent")


def largest(values: Floats) -> float:
    """Returns the largest value that is not NaN; 0 if there is none."""
    known = values[values == values]
    return float(known.max()) if known.size else 0.0


def _floats(values: ArrayLike) -> Floats:
    found: Floats = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    return found
