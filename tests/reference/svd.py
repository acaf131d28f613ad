"""A slow twin of the truncation: updates written out, singular triplets peeled off one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.reference.select import keep_top_global

Array = npt.NDArray[np.float64]


def update(A: Array, B: Array, scaling: float) -> Array:
    """ΔW, entry by entry."""
    delta = np.zeros((B.shape[0], A.shape[1]))
    for i in range(B.shape[0]):
        for j in range(A.shape[1]):
            for k in range(A.shape[0]):
                delta[i, j] += scaling * B[i, k] * A[k, j]
    return delta


def triplets(delta: Array, rank: int) -> list[tuple[float, Array, Array]]:
    """The first `rank` singular triplets, largest first: the first of ΔW, then the first of what is left."""
    found, left = [], delta
    for _ in range(rank):
        u, s, v = np.linalg.svd(left)
        found.append((float(s[0]), u[:, 0], v[0]))
        left = left - s[0] * np.outer(u[:, 0], v[0])
    return found


def truncate(
    factors: dict[str, tuple[Array, Array]], scaling: float, unit_costs: dict[str, int], params: int
) -> tuple[dict[str, list[float]], dict[str, list[int]], dict[str, Array]]:
    """Each site's singular values, which of them stay, and the truncated update."""
    found = {n: triplets(update(A, B, scaling), len(A)) for n, (A, B) in factors.items()}
    values = {n: [s for s, _, _ in t] for n, t in found.items()}
    kept = keep_top_global(values, unit_costs, params)
    truncated = {}
    for name, (A, B) in factors.items():
        total = np.zeros((B.shape[0], A.shape[1]))
        for k in kept[name]:
            s, u, v = found[name][k]
            total += s * np.outer(u, v)
        truncated[name] = total
    return values, kept, truncated
