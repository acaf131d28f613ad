"""EVA the slow way: singular values of all inputs at once, and components handed out one by one."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(inputs: Tensor) -> tuple[list[float], Tensor]:
    """(tokens, d) to the shares of variance, descending, and the right singular vectors of the centred inputs."""
    centred = inputs.double() - inputs.double().mean(0)
    _, singular, V = torch.linalg.svd(centred, full_matrices=True)
    squares = [float(s) ** 2 for s in singular] + [0.0] * (inputs.shape[1] - len(singular))
    return [square / sum(squares) for square in squares], V


def ranks(
    shares: dict[str, list[float]], costs: dict[str, int], most: dict[str, int], sides: dict[str, int], params: int
) -> dict[str, int]:
    """Components in descending share, earlier sites first among equals, as long as the parameters last."""
    names = list(shares)
    found = dict.fromkeys(names, 0)
    offers = [(-shares[n][k], i, k) for i, n in enumerate(names) for k in range(most[n])]
    left = params
    for _, i, _ in sorted(offers):
        if costs[names[i]] <= left:
            found[names[i]] += 1
            left -= costs[names[i]]
    for name in sorted(names, key=lambda n: -costs[n]):
        while found[name] and found[name] < sides[name] and costs[name] <= left:
            found[name] += 1
            left -= costs[name]
    return found
