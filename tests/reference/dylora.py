"""A slow twin of a truncated forward pass: sums over the first b components."""

from __future__ import annotations

Matrix = list[list[float]]


def output(A: Matrix, B: Matrix, x: list[float], b: int, scaling: float, rescale: bool) -> list[float]:
    """scaling · (r / b) · B[:, :b] A[:b] x, at most all r components."""
    r = len(A)
    used = b if b < r else r
    factor = scaling * (r / used if rescale else 1.0)
    found = []
    for i in range(len(B)):
        total = 0.0
        for k in range(used):
            inner = 0.0
            for j in range(len(x)):
                inner += A[k][j] * x[j]
            total += B[i][k] * inner
        found.append(factor * total)
    return found


def trains(rank: int, b: int) -> list[int]:
    """The components that a step with b trains where the others are frozen: the last of those in use."""
    used = [k for k in range(rank) if k < b]
    return used[-1:]
