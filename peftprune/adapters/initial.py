"""Initial values of a site's tensors, drawn from random streams of the seed alone."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from peftprune.strategy import AdapterSpec, SiteShape
from peftprune.strategy.rng import generator


def initial_values(
    shapes: Iterable[SiteShape], ranks: Mapping[str, int], spec: AdapterSpec, seed: int, *, draw_A: bool = True
) -> dict[str, dict[str, Tensor]]:
    """Returns the initial tensors of every site; a tensor that is left out keeps PEFT's values (B is zero).

    `ranks` maps site to starting rank, at least 1. Arms with the same seed start alike, whatever their ranks. The spec
    may replace the default values; `draw_A=False` leaves out every A for which it defines none.
    """
    values: dict[str, dict[str, Tensor]] = {}
    for shape in shapes:
        name, rank = shape.name, ranks[shape.name]
        values[name] = {"A": init_lora_A(rank, shape.d_in, generator(seed, "init", name))} if draw_A else {}
        for kind, std in spec.initial_std.items():
            size = 1 if kind == "gate" and spec.gate == "site" else rank
            values[name][kind] = init_normal(kind, shape, size, std, generator(seed, "init", name, kind))
        values[name] |= dict(spec.initial.get(name, {}))
    return {name: found for name, found in values.items() if found}


def init_lora_A(rank: int, d_in: int, rng: torch.Generator) -> Tensor:
    """Returns an initial A, (rank, d_in): uniform in ±1/√d_in, which is PEFT's Kaiming-uniform with a = √5.

    The bound does not depend on the rank and rows are drawn one after another, so with one seed the rows at a small
    rank are the first rows at a larger one.
    """
    return (torch.rand(rank, d_in, generator=rng) * 2 - 1) / d_in**0.5


def init_normal(kind: str, shape: SiteShape, rank: int, std: float, rng: torch.Generator) -> Tensor:
    """Returns normal initial values of "A", (rank, d_in), "B", (d_out, rank), or "gate", (rank,).

    Components are drawn one after another, so with one seed those at a small rank are the first ones at a larger rank.
    """
    width = {"A": shape.d_in, "B": shape.d_out, "gate": 1}[kind]
    # torch.randn draws in blocks, so its first values depend on how many are drawn; torch.rand does not.
    uniform = torch.rand(rank, width, generator=rng, dtype=torch.float64).clamp(min=1e-12)
    rows = (std * 2**0.5 * torch.erfinv(2 * uniform - 1)).float()
    return {"A": rows, "B": rows.T.contiguous(), "gate": rows.flatten()}[kind]
