"""Initial values of a site's tensors, from streams of the seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftprune.strategy.sites import SiteShape

if TYPE_CHECKING:
    import torch
    from torch import Tensor


from collections.abc import Iterable

from torch import Tensor

from peftprune.strategy.rng import generator
from peftprune.strategy.spec import AdapterSpec


def initial_values(
    shapes: Iterable[SiteShape], ranks: Mapping[str, int], spec: AdapterSpec, seed: int, *, draw_A: bool = True
) -> dict[str, dict[str, Tensor]]:
    """What every site's tensors start with; tensors that are not named stay as PEFT made them (B at zero).

    Args:
        shapes: the sites.
        ranks: site to starting rank, at least 1.
        spec: replaces the default values where it says so.
        seed: arms with the same seed start alike, whatever their ranks.
        draw_A: False leaves A alone where the spec says nothing of it.
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
    """The initial A of a site, (rank, d_in): uniform in ±1/√d_in, which is PEFT's Kaiming-uniform with a = √5.

    The bound does not depend on the rank and rows are drawn one after another, so that with one seed the rows at a
    small rank are the first rows at a larger one.
    """
    import torch

    return (torch.rand(rank, d_in, generator=rng) * 2 - 1) / d_in**0.5


def init_normal(kind: str, shape: SiteShape, rank: int, std: float, rng: torch.Generator) -> Tensor:
    """Normal initial values of a site's "A", (rank, d_in), "B", (d_out, rank), or "gate", (rank,).

    Components are drawn one after another, so that with one seed those at a small rank are the first ones at a larger
    rank.
    """
    import torch

    width = {"A": shape.d_in, "B": shape.d_out, "gate": 1}[kind]
    # torch.randn draws in blocks, so that its first values depend on how many are asked for; torch.rand does not.
    uniform = torch.rand(rank, width, generator=rng, dtype=torch.float64).clamp(min=1e-12)
    rows = (std * 2**0.5 * torch.erfinv(2 * uniform - 1)).float()
    return {"A": rows, "B": rows.T.contiguous(), "gate": rows.flatten()}[kind]
