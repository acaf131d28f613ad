"""The allocation explorer: the course of every arm's allocation as plain data, and the grid that shows it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from peftprune.analysis.runs import arm_rows
from peftprune.plots.labels import short_kinds
from peftprune.plots.style import contrasting
from peftprune.study.stored_study import StoredStudy

_COLOURS = "viridis"
_MOST_IN_LEGEND = 16


@dataclass(frozen=True)
class Grid:
    """Where sites stand: (short, full) names of kinds from left to right, layers from top to bottom with their cells.

    A cell holds numbers of sites: none, or one; several where a model has several sites of a kind in a layer.
    """

    kinds: tuple[tuple[str, str], ...]
    layers: tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]


@dataclass(frozen=True)
class Explorer:
    """What the page's explorer needs; `data` is JSON that may stand in a `<script>`."""

    grid: Grid
    data: Markup
    legend: tuple[tuple[int, str, str], ...]
    tasks: tuple[str, ...]
    budgets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


def explorer(comparison: StoredStudy) -> Explorer | None:
    """The explorer of a study; None where no finished arm has an adapter.

    The data holds `sites` (name, layer, kind), `colours` (rank to ground and ink) and `arms`, in the study's order:
    `key`, `status`, `steps` and `events`. An event has `step`, `phase`, `reason`, `scores` (number of a site to the
    score) and `sites`: number of a site to [rank, density, numbers of the sites it shares with, components], as in
    `allocation.jsonl`.
    """
    runs = arm_rows(comparison)["status"].tolist()
    results = [(key, folder, folder.result()) for key, folder in comparison.arms()]
    places: dict[str, dict[str, Any]] = {}
    for _, _, result in results:
        for site in result["allocation"] if result else []:
            places.setdefault(site["site"], {"name": site["site"], "layer": site["layer"], "kind": site["kind"]})
    if not places:
        return None
    number = {name: i for i, name in enumerate(places)}
    arms = [
        {
            "key": key,
            "status": status,
            "steps": result["budget"]["total_steps"] if result else None,
            "events": [_event(e, number) for e in folder.allocation()] if result and result["allocation"] else [],
        }
        for (key, folder, result), status in zip(results, runs, strict=True)
    ]
    ranks = {state[0] for arm in arms for event in arm["events"] for state in event["sites"].values()}
    colours = _colours(sorted(ranks))
    data = {
        "sites": list(places.values()),
        "colours": {rank: [ground, ink] for rank, ground, ink in colours},
        "arms": arms,
    }
    return Explorer(
        grid=_grid(list(places.values())),
        data=script_json(data),
        legend=colours[:: -(-len(colours) // _MOST_IN_LEGEND)] if colours else (),
        tasks=tuple(comparison.tasks),
        budgets=tuple(comparison.budgets),
        methods=tuple(comparison.methods),
        seeds=tuple(comparison.request["seeds"]),
    )


def script_json(value: Any) -> Markup:
    """JSON that cannot end the `<script>` it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _event(event: dict[str, Any], number: dict[str, int]) -> dict[str, Any]:
    sites = {
        number[name]: [s["rank"], s["density"], [number[other] for other in s["shared_with"]], s["components"]]
        for name, s in event["sites"].items()
    }
    scores = {number[name]: _finite(score) for name, score in event["scores"].items() if name in number}
    return {**{n: event[n] for n in ("step", "phase", "reason")}, "scores": scores, "sites": sites}


def _finite(score: float) -> float | str:
    """JSON has no words for what is not finite."""
    return score if math.isfinite(score) else str(score)


def _colours(ranks: list[int]) -> tuple[tuple[int, str, str], ...]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shown = [rank for rank in ranks if rank]
    # Colours follow the order of ranks, not their size: beside a first rank of 256, ranks of 8 and 12 would look alike.
    places = {rank: (i + 0.5) / len(shown) for i, rank in enumerate(shown)}
    grounds = {rank: to_hex(colormaps[_COLOURS](place)) for rank, place in places.items()}
    return tuple((rank, ground, contrasting(ground)) for rank, ground in grounds.items())


def _grid(sites: list[dict[str, Any]]) -> Grid:
    kinds = list(dict.fromkeys(site["kind"] for site in sites))
    # Layers upwards, as in the plots.
    layers = sorted({site["layer"] for site in sites}, reverse=True)
    rows = tuple(
        (
            layer,
            tuple(tuple(i for i, s in enumerate(sites) if s["layer"] == layer and s["kind"] == kind) for kind in kinds),
        )
        for layer in layers
    )
    return Grid(tuple(zip(short_kinds(kinds), kinds, strict=True)), rows)
