"""The allocation explorer: every arm's allocation over training as plain data, and the grid that shows it."""

import json
import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from peftprune.analysis.frames import Frames
from peftprune.plots.labels import short_kinds
from peftprune.plots.style import contrasting

_COLOURS = "viridis"
_MOST_IN_LEGEND = 16
Layers = tuple[tuple[int, tuple[tuple[int, ...], ...]], ...]


@dataclass(frozen=True)
class Explorer:
    """The values of the page's explorer; `data` is JSON for a `<script>` element.

    Sites are placed by (short, full) names of `kinds` from left to right, and by `layers` from top to bottom with their
    cells, which hold the numbers of a layer's sites of a kind.
    """

    kinds: tuple[tuple[str, str], ...]
    layers: Layers
    data: Markup
    legend: tuple[tuple[int, str, str], ...]


def explorer(frames: Frames) -> Explorer | None:
    """Returns the explorer of a study; None where no finished arm has an adapter.

    The data holds `sites` (name, layer, kind), `colours` (rank to background and text colour) and `arms`, in the
    study's order: `key`, `status`, `steps` and `events`. An event has `step`, `phase`, `reason`, `scores` (number of a
    site to its score) and `sites`: number of a site to [rank, density, numbers of the sites it shares with,
    components], as in `allocation.jsonl`.
    """
    study = frames.study
    places: dict[str, dict[str, Any]] = {}
    for _, _, result in study.finished():
        for site in result["allocation"]:
            places.setdefault(site["site"], {"name": site["site"], "layer": site["layer"], "kind": site["kind"]})
    if not places:
        return None
    number = {name: i for i, name in enumerate(places)}
    arms = []
    for (key, folder), status in zip(study.arms(), frames.runs["status"], strict=True):
        done = folder.result()
        steps = done["budget"]["total_steps"] if done else None
        events = [_event(e, number) for e in folder.allocation()] if done and done["allocation"] else []
        arms.append({"key": key, "status": status, "steps": steps, "events": events})
    ranks = {state[0] for arm in arms for event in arm["events"] for state in event["sites"].values()}
    colours = _colours(sorted(ranks))
    sites = list(places.values())
    data = {"sites": sites, "colours": {rank: [ground, ink] for rank, ground, ink in colours}, "arms": arms}
    legend = colours[:: -(-len(colours) // _MOST_IN_LEGEND)] if colours else ()
    return Explorer(*_grid(sites), script_json(data), legend)


def script_json(value: Any) -> Markup:
    """Returns JSON that cannot end its `<script>` element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _event(event: dict[str, Any], number: dict[str, int]) -> dict[str, Any]:
    sites = {
        number[name]: [s["rank"], s["density"], [number[other] for other in s["shared_with"]], s["components"]]
        for name, s in event["sites"].items()
    }
    found = {number[name]: score for name, score in event["scores"].items() if name in number}
    # JSON cannot express numbers that are not finite.
    scores = {i: score if math.isfinite(score) else str(score) for i, score in found.items()}
    return {**{n: event[n] for n in ("step", "phase", "reason")}, "scores": scores, "sites": sites}


def _colours(ranks: list[int]) -> tuple[tuple[int, str, str], ...]:
    shown = [rank for rank in ranks if rank]
    # Colours follow the order of ranks, not their values: next to a rank of 256, ranks 8 and 12 would look alike.
    places = {rank: (i + 0.5) / len(shown) for i, rank in enumerate(shown)}
    grounds = {rank: to_hex(colormaps[_COLOURS](place)) for rank, place in places.items()}
    return tuple((rank, ground, contrasting(ground)) for rank, ground in grounds.items())


def _grid(sites: list[dict[str, Any]]) -> tuple[tuple[tuple[str, str], ...], Layers]:
    kinds = list(dict.fromkeys(site["kind"] for site in sites))
    # The first layer is at the bottom, as in the plots.
    layers = sorted({site["layer"] for site in sites}, reverse=True)

    def cell(layer: int, kind: str) -> tuple[int, ...]:
        return tuple(i for i, site in enumerate(sites) if (site["layer"], site["kind"]) == (layer, kind))

    rows = tuple((layer, tuple(cell(layer, kind) for kind in kinds)) for layer in layers)
    return tuple(zip(short_kinds(kinds), kinds, strict=True)), rows
