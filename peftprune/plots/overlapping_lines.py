"""Lines that alternate where they coincide, so that all of them show without moving a value."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from peftprune.plots.style import series_style
from peftprune.plots.validation import Floats

LEGEND = "where values are equal,\nlines and marks alternate"
_PIECE = 3.0  # length of a dash, in line widths
_MOST_MARKED = 16  # points of one line that may all have a mark


def draw_alternating(ax: Axes, x: Floats, values: Floats, labels: Sequence[str], *, held: bool = False) -> None:
    """Draws the columns of `values` (points × labels) over `x` (points); NaN interrupts a line.

    Each label gets three kinds of artist: an empty one for legends, one with all its points and some of their marks,
    and its line segments. With `held` each value holds until the next point, instead of a straight line to it.
    """
    corners, heights = (np.repeat(x, 2)[1:], np.repeat(values, 2, axis=0)[:-1]) if held else (x, values)
    together = [_together(heights[s], heights[s + 1]) for s in range(len(corners) - 1)]
    bearing = _bearing(values)
    for i, label in enumerate(labels):
        style = series_style(i)
        ax.plot([], [], label=label, **style)
        ax.plot(x, values[:, i], markevery=bearing[i], **style | {"linestyle": "none", "zorder": style["zorder"] + 0.5})
        style["marker"] = ""
        for members, run in groupby(enumerate(segment.get(i) for segment in together), key=itemgetter(1)):
            if members is not None:
                segments = [segment for segment, _ in run]
                points = slice(segments[0], segments[-1] + 2)
                shown = style | ({"linestyle": _turn(members.index(i), len(members))} if len(members) > 1 else {})
                ax.plot(corners[points], heights[points, i], **shown)


def _together(begin: Floats, end: Floats) -> dict[int, tuple[int, ...]]:
    """Maps each line to all lines with its segment from `begin` to `end`; lines interrupted there are absent."""
    segments: dict[tuple[float, float], list[int]] = {}
    for i, (a, b) in enumerate(zip(begin, end, strict=True)):
        if a == a and b == b:
            segments.setdefault((float(a), float(b)), []).append(i)
    return {i: tuple(members) for members in segments.values() for i in members}


def _turn(turn: int, members: int) -> tuple[float, tuple[float, float]]:
    """Returns dashes with gaps for those of the other members."""
    return _PIECE * ((members - turn) % members), (_PIECE, _PIECE * (members - 1))


def _bearing(values: Floats) -> list[Any]:
    """Returns the marked points of each line. One of several equal points has a mark; long lines have few marks."""
    points, lines = values.shape
    if points > _MOST_MARKED:
        return [spaced(i, lines) for i in range(lines)]
    found: list[list[int]] = [[] for _ in range(lines)]
    for point in range(points):
        for members in dict.fromkeys(_together(values[point], values[point]).values()):
            found[members[point % len(members)]].append(point)
    return found


def spaced(index: int, count: int) -> tuple[float, float]:
    """Returns the `markevery` of line `index` of `count` that has many points: its marks lie between the others'."""
    return (index / count / _MOST_MARKED, 1 / _MOST_MARKED)
