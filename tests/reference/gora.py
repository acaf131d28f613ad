"""GoRA and Fisher ranks the slow way: entry by entry, in exact fractions where it can be."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from tests.reference.budget import solve_ranks


def importance(weight: list[list[float]], gradient: list[list[float]]) -> float:
    """The mean of |w · g| over all entries."""
    products = [
        abs(w * g) for row, other in zip(weight, gradient, strict=True) for w, g in zip(row, other, strict=True)
    ]
    return sum(products) / len(products)


def mean_square(gradient: list[list[float]]) -> float:
    """The mean of g² over all entries."""
    squares = [g * g for row in gradient for g in row]
    return sum(squares) / len(squares)


def ranks(
    weights: list[float], costs: list[int], least: list[int], most: list[int], caps: list[int], params: int
) -> list[int]:
    """Ranks in proportion to the weights, clipped, at the factor that spends the budget; then largest remainder."""
    exact = [Fraction(w) for w in weights]

    def clipped(level: Fraction) -> list[Fraction]:
        return [min(max(level * w, Fraction(lo)), Fraction(hi)) for w, lo, hi in zip(exact, least, most, strict=True)]

    def spent(level: Fraction) -> Fraction:
        return sum((t * c for t, c in zip(clipped(level), costs, strict=True)), Fraction())

    # Between two of these levels the cost is a straight line.
    corners = sorted({bound / w for w, *bounds in zip(exact, least, most, strict=True) for bound in bounds})
    level = corners[-1]
    for below, above in pairwise(corners):
        if spent(below) <= params <= spent(above) and spent(above) > spent(below):
            level = below + (above - below) * (params - spent(below)) / (spent(above) - spent(below))
    return solve_ranks(costs, caps, clipped(level), params)  # type: ignore[arg-type]


def start_of_B(gradient: Any, A: Any, gamma: float, scaling: float) -> Any:
    """The released G Aᵀ (A Aᵀ + 1e-8 I)⁺ · ξ / α, with ξ = γ / √(rank / d_in) · √rank and α = scaling · √rank."""
    rank, d_in = A.shape
    alpha = scaling * rank**0.5
    xi = gamma / (rank / d_in) ** 0.5 * rank**0.5
    return gradient @ A.T @ np.linalg.pinv(A @ A.T + 1e-8 * np.eye(rank)) * xi / alpha
