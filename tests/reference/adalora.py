"""A slow twin of AdaLoRA: one loop per site, component and entry, plain lists of doubles."""

from __future__ import annotations

from typing import Any

Matrix = list[list[float]]
BETA1, BETA2 = 0.85, 0.85


class Sensitivities:
    """Averages of |w · ∇w| and of its deviation, entry by entry, each starting at 0."""

    def __init__(self) -> None:
        self.entries: dict[tuple[Any, ...], tuple[float, float]] = {}

    def step(self, site: str, tensors: dict[str, tuple[Matrix, Matrix]]) -> None:
        """Take in one site's weights and gradients: A as rows of components, B as its columns, gate as (r, 1)."""
        for name, (weights, gradients) in tensors.items():
            for k in range(len(weights)):
                for j in range(len(weights[k])):
                    value = abs(weights[k][j] * gradients[k][j])
                    mean, deviation = self.entries.get((site, name, k, j), (0.0, 0.0))
                    mean = BETA1 * mean + (1 - BETA1) * value
                    deviation = BETA2 * deviation + (1 - BETA2) * abs(value - mean)
                    self.entries[site, name, k, j] = mean, deviation

    def score(self, site: str, k: int) -> float:
        """Of component k: its gate's score plus the means over its row of A and its column of B."""
        total = 0.0
        for name in ("A", "B", "gate"):
            found = []
            j = 0
            while (site, name, k, j) in self.entries:
                mean, deviation = self.entries[site, name, k, j]
                found.append(mean * deviation)
                j += 1
            total += sum(found) / len(found)
        return total


def budget(step: int, first: int, last: int, initial: float, target: float) -> float:
    """b(t): the initial budget up to step `first`, the target from step `last` on, in between the cubic rule."""
    if step <= first:
        return initial
    if step >= last:
        return target
    return target + (initial - target) * (1 - (step - first) / (last - first)) ** 3


def kept(scores: dict[str, list[float]], costs: dict[str, int], params: float) -> dict[str, list[int]]:
    """The best component that still fits, again and again; ties go to the earlier site, then the lower index."""
    rest = [(site, k) for site in scores for k in range(len(scores[site]))]
    found: dict[str, list[int]] = {site: [] for site in scores}
    while rest:
        best = rest[0]
        for site, k in rest:
            if scores[site][k] > scores[best[0]][best[1]]:
                best = site, k
        rest.remove(best)
        if costs[best[0]] <= params:
            params -= costs[best[0]]
            found[best[0]].append(best[1])
    return {site: sorted(indices) for site, indices in found.items()}


def penalty(matrices: list[Matrix], form: str) -> float:
    """‖M Mᵀ − I‖ for each matrix of rows: the mean of the norms, or the sum of their squares."""
    squares = []
    for rows in matrices:
        total = 0.0
        for i in range(len(rows)):
            for k in range(len(rows)):
                product = 0.0
                for j in range(len(rows[i])):
                    product += rows[i][j] * rows[k][j]
                total += (product - (1.0 if i == k else 0.0)) ** 2
        squares.append(total)
    if form == "square":
        return sum(squares)
    return sum(square**0.5 for square in squares) / len(squares)
