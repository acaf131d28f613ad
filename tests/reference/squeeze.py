"""Truncation of one update the slow way: written out, decomposed whole, and split evenly."""

from __future__ import annotations

from typing import Any

import numpy as np


def ranks(first: int, final: int, squeezes: int) -> list[int]:
    """The rank after each squeeze: each time the same factor of what is left to go, rounded."""
    found, rank = [], first
    for left in range(squeezes, 0, -1):
        rank = round(rank * (final / rank) ** (1 / left))
        found.append(rank)
    return found


def truncate(A: Any, B: Any, rank: int) -> tuple[Any, Any, float]:
    """New factors, each up to the sign of a component, and the share of the squared norm that stays."""
    U, S, V = np.linalg.svd(B @ A)
    root = np.sqrt(S[:rank])
    return root[:, None] * V[:rank], U[:, :rank] * root, float((S[:rank] ** 2).sum() / (S**2).sum())
