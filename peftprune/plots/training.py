"""Ranks over the steps of training, which stay as they are between events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftprune.plots.axes import finish
from peftprune.plots.bands import Phase, as_steps, name_phases, shade_phases
from peftprune.plots.cells import colour_cells
from peftprune.plots.labels import every, fit, short_kinds
from peftprune.plots.legends import colour_bar, legend_beside, legend_height
from peftprune.plots.overlapping_lines import LEGEND, draw_in_turns
from peftprune.plots.style import DARK_INK, LIGHT_INK, PAGE_WIDTH, axes_or_new, room
from peftprune.plots.validation import grid, largest, not_empty

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from peftprune.plots.validation import Floats

_MOST_VECTOR_CELLS = 4000  # more would make a vector file unwieldy
_SITE_WIDTH = 2.0  # inches for a site's name


def rank_over_training(
    ax: Axes | None,
    steps: ArrayLike,
    values: ArrayLike,
    labels: Sequence[str],
    *,
    total_steps: float | None = None,
    phases: Sequence[Phase] = (),
    title: str = "",
    ylabel: str = "rank in total",
    legend: bool = True,
) -> Axes:
    """Draw the rank of each group of sites over the steps of training, constant from one event to the next.

    Where groups have equal values, their lines and marks take turns, so that all of them show.

    Args:
        ax: where to draw; None makes a figure of its own.
        steps: n optimizer steps, rising, from which on the values hold.
        values: n × groups, totals or means of the ranks, at least 0; NaN where unknown.
        labels: one per group, such as kinds of layer.
        total_steps: end of the run; None ends at the last of `steps`.
        phases: (name, start, stop) in steps; shaded, with names above.
        ylabel: what the values are.
        legend: name the groups at the right.

    Raises:
        UsageError: there is no step or label, steps do not rise, the end lies before the last, a phase ends before it
            starts, or the shape is not steps × labels.
    """
    import numpy as np

    at, end = as_steps(steps, total_steps)
    known = _steps_by("values", values, at, labels)
    names = short_kinds(labels)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.8, legend_height(names, 2) + (1.6 if phases else 0.7))))
    # The last value holds to the end of the run.
    if end > at[-1]:
        at, known = np.append(at, end), np.vstack([known, known[-1:]])
    draw_in_turns(drawn, at, known, names, held=True)
    top = largest(known) or 1.0
    drawn.set_ylim(-0.06 * top, 1.08 * top)
    _limit(drawn, at[0], end, 0.02)
    finish(drawn, title=title, xlabel="optimizer step", ylabel=ylabel)
    if legend:
        legend_beside(drawn, title=LEGEND if len(names) > 1 else "")
    shade_phases(drawn, phases)
    name_phases(drawn, phases, at[0], end, share=0.7 if legend else 0.9)
    return drawn


def rank_timeline(
    ax: Axes | None,
    steps: ArrayLike,
    ranks: ArrayLike,
    site_labels: Sequence[str],
    *,
    total_steps: float | None = None,
    phases: Sequence[Phase] = (),
    title: str = "",
    vmax: float | None = None,
    cmap: str = "viridis",
    bar: bool = True,
) -> Axes:
    """Draw the rank of every site over the steps of training: the first site at the bottom, steps to the right.

    Args:
        ax: where to draw; None makes a figure of its own.
        steps: n optimizer steps, rising, from which on the ranks hold.
        ranks: n × sites, at least 0; NaN where there is no site.
        site_labels: one per site, thinned out where they would touch.
        total_steps: end of the run; None ends as long after the last of `steps` as that follows the one before.
        phases: (name, start, stop) in steps; their names stand above, and lines mark where each starts.
        vmax: rank at the upper end of the colour map, whose lower end is 0; None takes the largest rank.
        bar: add a colour bar.

    Raises:
        UsageError: as for `rank_over_training`.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    at, end = as_steps(steps, total_steps)
    known = _steps_by("ranks", ranks, at, site_labels)
    if end <= at[-1]:
        end = at[-1] + (at[-1] - at[-2] if len(at) > 1 else 1.0)
    # Events that change nothing need no column of their own.
    changed = np.r_[True, ~_equal(known[1:], known[:-1]).all(axis=1)]
    edges, columns = np.append(at[changed], end), known[changed].T
    sites = len(site_labels)
    drawn = axes_or_new(ax, (PAGE_WIDTH, min(max(1.8, 0.13 * sites + 0.7), 5.0) + (1.0 if phases else 0.0)))
    top = vmax if vmax is not None else largest(known)
    mesh = colour_cells(drawn, columns, 0.0, max(top, 1.0), cmap, x=edges, lined=False)
    mesh.set_rasterized(columns.size > _MOST_VECTOR_CELLS)
    step = every(sites, room(drawn)[1])
    names = [fit(name, _SITE_WIDTH, 1) for name in short_kinds(site_labels)[::step]]
    drawn.set_yticks(np.arange(0, sites, step) + 0.5, names, parse_math=False)
    drawn.set_ylim(0, sites)
    _limit(drawn, at[0], end, 0.0)
    finish(drawn, title=title, xlabel="optimizer step")
    drawn.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if bar:
        colour_bar(drawn, "rank", integer=True)
    for _, start, _ in phases:
        if at[0] < start < end:
            # Two lines, a dark on a light one, so that one of them shows on any colour.
            drawn.axvline(start, color=LIGHT_INK, linewidth=1.6)
            drawn.axvline(start, color=DARK_INK, linewidth=0.8, linestyle=(0, (3, 2)))
    name_phases(drawn, phases, at[0], end, share=0.7)
    return drawn


def _steps_by(field: str, values: ArrayLike, at: Floats, labels: Sequence[str]) -> Floats:
    not_empty("labels", labels)
    return grid(field, values, ("steps", len(at)), ("labels", len(labels)))


def _equal(a: Floats, b: Floats) -> NDArray[np.bool_]:
    import numpy as np

    equal: NDArray[np.bool_] = (a == b) | (np.isnan(a) & np.isnan(b))
    return equal


def _limit(ax: Axes, low: float, high: float, margin: float) -> None:
    """Ends of the axis of steps, also for a run of no length."""
    length = (high - low) or 1.0
    ax.set_xlim(low - margin * length, low + length * (1 + margin))
