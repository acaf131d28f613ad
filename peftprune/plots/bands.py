"""Phases of training as bands behind a plot over steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from peftprune.errors import UsageError
from peftprune.plots.labels import fit, spread, text_width
from peftprune.plots.style import GREY, LINE_SPACING, TICK_SIZE, room

Phase = tuple[str, float, float]


def draw_phases(ax: Axes, phases: Sequence[Phase], low: float, high: float, *, share: float) -> None:
    """Shades the phases, (name, start, stop) in steps, alternately lighter and darker, and names them above the axes.

    Names are vertical where a phase is too short for its name. The axes span the steps low … high; `share` is the share
    of their current width that remains beside legends.
    """
    for name, start, stop in phases:
        if not start <= stop:
            raise UsageError.of("phases", (name, start, stop), "ends before it starts", "Give (name, start, stop)")
    if not phases:
        return
    ordered = sorted(phases, key=lambda phase: phase[1:])
    for i, (_, start, stop) in enumerate(ordered):
        ax.axvspan(start, stop, facecolor=GREY, alpha=0.22 if i % 2 else 0.08, linewidth=0, zorder=0.5)
    points = share * room(ax)[0] / max(high - low, 1e-12)  # per step
    names = [fit(name, 1.2, 1) for name, _, _ in ordered]
    middles = [(start + stop) / 2 for _, start, stop in ordered]
    widths = [(text_width(name) + 6) / points for name in names]
    # The first name may begin slightly before the axis.
    places = spread(middles, widths, low - 10 / points, high)
    moves = [abs(place - middle) for place, middle in zip(places, middles, strict=True)]
    level = all(move <= width / 3 for move, width in zip(moves, widths, strict=True)) and sum(widths) <= high - low
    if not level:
        places = spread(middles, [1.1 * LINE_SPACING * TICK_SIZE / points] * len(names), low, high)
    # As ticks of a second axis, the names move a title out of their way.
    above = ax.secondary_xaxis("top")
    above.set_xticks(places, names, fontsize=TICK_SIZE, parse_math=False)
    above.tick_params(length=0, pad=2, labelrotation=0 if level else 90)
    above.spines["top"].set_visible(False)


def as_steps(steps: ArrayLike, total_steps: float | None) -> tuple[NDArray[np.float64], float]:
    """Returns the steps as floats, and the plot's end. Raises UsageError unless the steps increase up to the end."""
    found = np.asarray(steps, dtype=float)
    if found.ndim != 1 or not found.size:
        raise UsageError.of("steps", found.shape, "is not a list of steps", "Give at least one step")
    if not (np.diff(found) > 0).all():
        raise UsageError.of("steps", found[:5].tolist(), "does not increase", "Give each step once, in order")
    end = float(found[-1]) if total_steps is None else float(total_steps)
    if not end >= found[-1]:
        raise UsageError.of("total_steps", end, f"lies before the last step, {found[-1]:g}", "Give the run's length")
    return found, end
