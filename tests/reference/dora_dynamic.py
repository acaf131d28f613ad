"""A slow twin of DoRA with dynamic rank: one loop per component and entry, plain lists of doubles."""

from __future__ import annotations

Matrix = list[list[float]]


def norm(matrix: Matrix) -> float:
    """The Frobenius norm."""
    return sum(value * value for row in matrix for value in row) ** 0.5


def part(A: Matrix, B: Matrix, gate: list[float], k: int) -> Matrix:
    """The part of component k in the update; A has a row, and B a column, per component."""
    return [[row[k] * gate[k] * a for a in A[k]] for row in B]


def shares(A: Matrix, B: Matrix, gate: list[float]) -> list[float]:
    """Each component's norm over the norm of the sum of all, to which 1e-8 is added."""
    parts = [part(A, B, gate, k) for k in range(len(gate))]
    total = [[sum(p[i][j] for p in parts) for j in range(len(A[0]))] for i in range(len(B))]
    return [norm(p) / (norm(total) + 1e-8) for p in parts]


def left(initial: int, target: int, progress: float, unit: int) -> int:
    """Parameters that components may have: a component is pruned once all of it is due."""
    return initial - int((initial - target) * progress * progress * progress) + unit - 1


def penalty(A: Matrix, B: Matrix) -> list[float]:
    """The variances of the rows of A and of the columns of B."""
    rows = A + [list(column) for column in zip(*B, strict=True)]
    means = [sum(row) / len(row) for row in rows]
    return [sum((v - m) ** 2 for v in row) / (len(row) - 1) for row, m in zip(rows, means, strict=True)]
