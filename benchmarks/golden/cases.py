"""Inputs of the golden cases, from seeds alone, and so never stored.

Numbers come from numpy's `RandomState`, whose sequences are frozen for all versions and machines, and every number is
an odd multiple of 2⁻⁸ or 2⁻¹³, which single precision holds exactly and which is never 0.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COUNT = 60
"""Cases of each method."""


class Draw:
    """Numbers for one purpose, which its name alone decides."""

    def __init__(self, *name: object) -> None:
        self._rng = np.random.RandomState(zlib.crc32("/".join(map(str, name)).encode()))

    def whole(self, low: int, high: int) -> int:
        """Returns an integer from `low` to `high`, both included."""
        return low + int(self._rng.random_sample() * (high - low + 1))

    def tensor(self, *shape: int, bits: int = 13) -> Tensor:
        """Returns numbers in (−1, 1), odd multiples of 2**−bits."""
        steps = np.floor(self._rng.random_sample(shape) * 2**bits)
        return torch.from_numpy(((2 * steps + 1) / 2**bits - 1).astype(np.float32))


@dataclass(frozen=True)
class Components:
    """A site's components at one step: A (r, d_in), B (d_out, r), gate (r,), and their gradients."""

    A: Tensor
    B: Tensor
    gate: Tensor
    grad_A: Tensor  # noqa: N815
    grad_B: Tensor  # noqa: N815
    grad_gate: Tensor


def components(method: str, case: int, step: int, site: int, rank: int, width: int) -> Components:
    """Returns a square site's tensors, whose number of components follows from the decisions so far."""
    draw = Draw(method, case, step, site)
    shapes = 2 * [(rank, width), (width, rank), (rank,)]
    tensors = [draw.tensor(*shape) for shape in shapes]
    if method == "flexlora":
        # Where all gates are positive, the smallest one is also the smallest in magnitude.
        tensors[2] = tensors[2].abs()
    return Components(*tensors)


@dataclass(frozen=True)
class Run:
    """A run of a method that decides during training. Steps count from 1; warm-up and final phase are steps too."""

    case: int
    sites: int
    rank: int
    target: int
    width: int
    steps: int
    warmup: int
    final: int
    every: int
    amount: int


def adalora(case: int) -> Run:
    """Sites start at `rank`; `target` is the mean rank at the end."""
    draw = Draw("adalora", case)
    shape = draw.whole(2, 4), draw.whole(3, 5), draw.whole(1, 2), draw.whole(5, 7)
    return Run(case, *shape, 15, 3, 3, draw.whole(2, 3), 0)


def dora_dynamic(case: int) -> Run:
    """Sites start at `rank`; `target` is the mean rank at the end. Decisions fall on multiples of `every`."""
    draw = Draw("dora-dynamic", case)
    every = draw.whole(1, 3)
    shape = draw.whole(2, 4), draw.whole(4, 6), draw.whole(2, 3), draw.whole(6, 8)
    return Run(case, *shape, 8 * every + 4, 2 * every, 4, every, 0)


def elalora(case: int) -> Run:
    """`amount` components are exchanged in the first round."""
    draw = Draw("elalora", case)
    rank = draw.whole(3, 4)
    return Run(case, 7, rank, rank, 8, 15, 3, 3, draw.whole(2, 3), draw.whole(1, 3))


def flexlora(case: int) -> Run:
    """`amount` sites lose, and as many gain, a component in the first round."""
    draw = Draw("flexlora", case)
    rank = draw.whole(5, 6)
    return Run(case, 2 * draw.whole(3, 4), rank, rank, 12, 15, 3, 3, draw.whole(2, 3), draw.whole(1, 3))


def increlora(case: int) -> Run:
    """`amount` sites grow by one component in each round; the last round is that of the last step before the end."""
    draw = Draw("increlora", case)
    sites, amount, every = 2 * draw.whole(2, 3), draw.whole(1, 2), draw.whole(2, 3)
    target = 2 if amount == 1 else draw.whole(2, 3)
    growth = every * (sites * (target - 1) // amount)
    return Run(case, sites, 1, target, 12, every + growth + 5, every, 5, every, amount)


@dataclass(frozen=True)
class Cuts:
    """LoRPA: square sites (A, B), and the components that each of the successive events removes from every site."""

    sites: list[tuple[Tensor, Tensor]]
    removed: list[int]


def lorpa(case: int) -> Cuts:
    draw = Draw("lorpa", case)
    rank = draw.whole(6, 12)
    width = rank + draw.whole(0, 4)
    # Products and sums of so few bits are exact, in whatever order they are added.
    sites = [(draw.tensor(rank, width, bits=8), draw.tensor(width, rank, bits=8)) for _ in range(2)]
    first = draw.whole(1, rank - 2)
    return Cuts(sites, [first, draw.whole(1, rank - first - 1)])


@dataclass(frozen=True)
class Weights:
    """WeightLoRA: weights that stay positive through all steps, their gradients, K and the step size."""

    start: Tensor
    gradients: list[Tensor]
    kept: int
    rate: float


def weightlora(case: int) -> Weights:
    draw = Draw("weightlora", case)
    sites = draw.whole(4, 12)
    # Gradients are at most −2⁻⁴ or so; the first is 0, as while every B is 0.
    gradients = [torch.zeros(sites)] + [-(draw.tensor(sites).abs() + 2**-4) for _ in range(4)]
    return Weights(torch.ones(sites), gradients, draw.whole(1, sites - 1), 10.0)


@dataclass(frozen=True)
class Gates:
    """Gates of several sites at successive events, and a threshold or interval."""

    events: list[list[Tensor]]
    threshold: float


def sora(case: int) -> Gates:
    """A threshold, which gates lie on both sides of."""
    draw = Draw("sora", case)
    threshold = draw.whole(1, 60) / 128
    return Gates([[draw.tensor(8)] for _ in range(4)], threshold)


def l1ra(case: int) -> Gates:
    """Gates in (0, 1), some of them 0; the first site loses none."""
    draw = Draw("l1ra", case)
    gates = [draw.tensor(draw.whole(2, 6)).abs() for _ in range(draw.whole(3, 6))]
    for gate in gates[1:]:
        for index in range(len(gate)):
            if draw.whole(0, 2) == 0:
                gate[index] = 0.0
    if not any((gate == 0).any() for gate in gates):
        gates[1][0] = 0.0
    # A site whose gates are all 0 keeps another one in the authors' code, so one of its gates survives.
    for gate in gates:
        if not gate.any():
            gate[0] = 0.5
    return Gates([gates], 1e-10)


@dataclass(frozen=True)
class Truncation:
    """DyLoRA: an adapter, inputs, and the weights of the outputs in the loss."""

    A: Tensor
    B: Tensor
    inputs: Tensor
    outputs: Tensor


def dylora(case: int) -> Truncation:
    draw = Draw("dylora", case)
    rank = draw.whole(2, 3)
    wide, tall = rank + draw.whole(0, 1), rank + draw.whole(0, 1)
    return Truncation(draw.tensor(rank, wide), draw.tensor(tall, rank), draw.tensor(2, wide), draw.tensor(2, tall))


@dataclass(frozen=True)
class Inputs:
    """EVA: what each of the equally wide layers reads, the uniform rank, and rho."""

    inputs: list[Tensor]
    rank: int
    rho: float


def eva(case: int) -> Inputs:
    draw = Draw("eva", case)
    width, layers = draw.whole(6, 8), draw.whole(2, 4)
    scales = [2.0 ** -(draw.tensor(width).abs() * draw.whole(1, 8)) for _ in range(layers)]
    return Inputs([draw.tensor(24, width) * s for s in scales], draw.whole(1, 3), [1.0, 1.5, 2.0][case % 3])


@dataclass(frozen=True)
class Probe:
    """GoRA: each site's weight, its gradients in two batches and a possible A; the uniform rank; and the ranks.

    Gradients are scaled so that importances pay for whole ranks, which spend the budget exactly.
    """

    weights: list[Tensor]
    gradients: list[list[Tensor]]
    A: list[Tensor]
    uniform: int
    ranks: list[int]


def gora(case: int) -> Probe:
    draw = Draw("gora", case)
    probe = Probe([], [], [], uniform=3, ranks=[])
    for _ in range(draw.whole(1, 2)):
        # Two sites of one shape share what six units of rank cost.
        d_out, d_in, more = draw.whole(5, 6), draw.whole(7, 8), draw.whole(0, 2)
        for rank in (3 + more, 3 - more):
            weight, first, second = (draw.tensor(d_out, d_in) for _ in range(3))
            size = rank * (d_in + d_out) / float((weight * (first + second)).abs().mean())
            probe.weights.append(weight)
            probe.gradients.append([size * first, size * second])
            probe.A.append(draw.tensor(rank, d_in))
            probe.ranks.append(rank)
    return probe


def products(case: int, step: int, site: int, rank: int, width: int) -> tuple[Tensor, Tensor, Components]:
    """Returns a layer's inputs (3, width), the weights of its outputs in the loss (3, width), and its components."""
    draw = Draw("increlora-inputs", case, step, site)
    return draw.tensor(3, width), draw.tensor(3, width), components("increlora", case, step, site, rank, width)
