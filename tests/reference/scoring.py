"""Slow twins of `peftprune.scoring` and of the pruning rules that use it: one loop per index, plain lists."""

from __future__ import annotations

from fractions import Fraction

Matrix = list[list[float]]


def rank_magnitude(A: Matrix, B: Matrix, form: str) -> list[float]:
    """LoRPA: Σ_i |B_ik A_ki|, or with `outer` Σ_ij |B_ik A_kj|."""
    scores = []
    for k in range(len(A)):
        total = 0.0
        for i in range(len(B)):
            if form == "hadamard":
                total += abs(B[i][k] * A[k][i])
            else:
                for j in range(len(A[k])):
                    total += abs(B[i][k] * A[k][j])
        scores.append(total)
    return scores


def weight_times_input_norm(A: Matrix, norm: list[float]) -> Matrix:
    """PRILoRA: |A_kj| · norm_j."""
    scores = []
    for row in A:
        line = []
        for j in range(len(row)):
            line.append(abs(row[j]) * norm[j])
        scores.append(line)
    return scores


def pruned(scores: Matrix, pattern: str, sparsity: float) -> list[list[bool]]:
    """True where PRILoRA zeroes A. Among equal scores the lower index goes first."""
    rows, columns = len(scores), len(scores[0])
    mask = [[False] * columns for _ in range(rows)]
    if pattern == "row":
        for k in range(rows):
            for j in _lowest(scores[k], int(sparsity * columns)):
                mask[k][j] = True
    elif pattern == "matrix":
        flat = [value for row in scores for value in row]
        for index in _lowest(flat, int(sparsity * len(flat))):
            mask[index // columns][index % columns] = True
    else:
        n, m = (int(part) for part in pattern.split(":"))
        for k in range(rows):
            # Columns that do not fill a block of m are left alone.
            for start in range(0, columns - m + 1, m):
                for j in _lowest(scores[k][start : start + m], m - n):
                    mask[k][start + j] = True
    return mask


def _lowest(values: list[float], count: int) -> list[int]:
    """Indices of the lowest values, found one after another."""
    found: list[int] = []
    for _ in range(count):
        best = None
        for index in range(len(values)):
            if index not in found and (best is None or values[index] < values[best]):
                best = index
        assert best is not None
        found.append(best)
    return found


def keep_top(scores: list[float], n: int) -> list[int]:
    """Indices of the highest scores, found one after another; the first of equals wins."""
    found: list[int] = []
    for _ in range(n):
        best = None
        for index in range(len(scores)):
            if index not in found and (best is None or scores[index] > scores[best]):
                best = index
        assert best is not None
        found.append(best)
    return sorted(found)


def until_share(scores: dict[str, int], share: Fraction) -> list[str]:
    """LoRA-drop: take the highest that is left until the taken ones hold `share` of the total. Exact arithmetic."""
    left, kept, running = dict(scores), [], 0
    while left:
        best = None
        for name in left:
            if best is None or left[name] > left[best]:
                best = name
        assert best is not None
        kept.append(best)
        running += left.pop(best)
        if running >= share * sum(scores.values()):
            break
    return kept


def output_energy(A: Matrix, B: Matrix, x: list[Matrix], mask: Matrix | None, scaling: float) -> float:
    """Σ over real tokens of ‖scaling · B (A x)‖²."""
    total = 0.0
    for b in range(len(x)):
        for t in range(len(x[b])):
            if mask is not None and mask[b][t] == 0:
                continue
            hidden = [sum(row[j] * x[b][t][j] for j in range(len(row))) for row in A]
            for row in B:
                total += (scaling * sum(row[k] * hidden[k] for k in range(len(hidden)))) ** 2
    return total


def drop_scores(energy: dict[str, float], kinds: dict[str, str], normalise: str) -> dict[str, float]:
    """LoRA-drop: each site's share of the energy, over all sites or within its kind (kinds then weigh the same)."""
    scores = {}
    for name in energy:
        if normalise == "all":
            rivals, weight = list(energy), 1.0
        else:
            rivals = [other for other in energy if kinds[other] == kinds[name]]
            weight = 1.0 / len(set(kinds.values()))
        scores[name] = weight * energy[name] / sum(energy[other] for other in rivals)
    return scores


def smoothed_sensitivity(steps: list[tuple[list[float], list[float]]], beta1: float, beta2: float) -> list[float]:
    """AdaLoRA: entry by entry over the steps (weights, gradients), both averages starting at 0."""
    scores = []
    for j in range(len(steps[0][0])):
        mean = uncertainty = 0.0
        for weights, gradients in steps:
            value = abs(weights[j] * gradients[j])
            mean = beta1 * mean + (1 - beta1) * value
            uncertainty = beta2 * uncertainty + (1 - beta2) * abs(value - mean)
        scores.append(mean * uncertainty)
    return scores
