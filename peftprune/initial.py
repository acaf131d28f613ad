"""Initial values of a site's tensors, from streams of the seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from peftprune.rng import generator
from peftprune.sites import SiteShape, init_lora_A, init_normal
from peftprune.strategy import AdapterSpec


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
