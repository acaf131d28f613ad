"""Ranks as lines: over layers, and over the steps of training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from peftprune.plots.axes import finish
from peftprune.plots.bands import Phase, as_steps, draw_phases
from peftprune.plots.cells import as_grid
from peftprune.plots.labels import every, short_kinds, text_width
from peftprune.plots.legends import legend_beside, legend_height
from peftprune.plots.overlapping_lines import LEGEND, draw_alternating
from peftprune.plots.style import PAGE_WIDTH, axes_or_new, room
from peftprune.plots.validation import grid, largest, not_empty


def rank_lines(
    ax: Axes | None,
    ranks: ArrayLike,
    layer_labels: Sequence[object],
    kind_labels: Sequence[str],
    *,
    title: str = "",
    legend: bool = True,
) -> Axes:
    """Draws ranks over layers, one line per kind of layer.

    Where kinds have equal ranks, their lines and marks alternate, so that all of them show.

    Args:
        ranks: layers × kinds, at least 0; NaN where there is no site, which breaks the line.
        layer_labels: one per row. kind_labels: one per column.

    Raises:
        UsageError: the shapes do not match, or there is no layer or kind.
    """
    values = as_grid("ranks", ranks, layer_labels, kind_labels)
    layers = len(values)
    names = short_kinds(kind_labels)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.6, legend_height(names, 2) + 0.6)))
    draw_alternating(drawn, np.arange(layers, dtype=float), values, names)
    width = 0.7 * room(drawn)[0]
    widest = text_width("\n".join(map(str, layer_labels)))
    step = max(1, -(-int(layers * (widest + 6)) // max(int(width), 1)))
    if widest > width / 3:
        # Names of layers, not numbers: vertical names need one line each.
        step = every(layers, width)
        drawn.tick_params(axis="x", labelrotation=90)
    drawn.set_xticks(np.arange(0, layers, step), [str(label) for label in layer_labels[::step]], parse_math=False)
    drawn.set_xlim(-0.5, layers - 0.5)
    _limit_ranks(drawn, max(largest(values), 1.0))
    drawn.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    finish(drawn, title=title, xlabel="layer", ylabel="rank")
    if legend:
        legend_beside(drawn, title=LEGEND if len(names) > 1 else "")
    return drawn


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
    """Draws the rank of each group of sites over the steps of training, constant from one event to the next.

    Where groups have equal values, their lines and marks alternate, so that all of them show.

    Args:
        steps: n optimizer steps, increasing, from which on the values hold.
        values: n × groups, totals or means of the ranks, at least 0; NaN where unknown.
        labels: one per group, such as kinds of layer.
        total_steps: end of the run; None ends at the last of `steps`.
        phases: (name, start, stop) in steps; shaded, with names above.

    Raises:
        UsageError: there is no step or label, steps do not increase, the end lies before the last step, a phase ends
            before it starts, or the shape is not steps × labels.
    """
    at, end = as_steps(steps, total_steps)
    not_empty("labels", labels)
    known = grid("values", values, ("steps", len(at)), ("labels", len(labels)))
    names = short_kinds(labels)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.8, legend_height(names, 2) + (1.6 if phases else 0.7))))
    # The last value holds to the end of the run.
    if end > at[-1]:
        at, known = np.append(at, end), np.vstack([known, known[-1:]])
    draw_alternating(drawn, at, known, names, held=True)
    _limit_ranks(drawn, largest(known) or 1.0)
    length = (end - at[0]) or 1.0
    drawn.set_xlim(at[0] - 0.02 * length, at[0] + 1.02 * length)
    finish(drawn, title=title, xlabel="optimizer step", ylabel=ylabel)
    if legend:
        legend_beside(drawn, title=LEGEND if len(names) > 1 else "")
    draw_phases(drawn, phases, at[0], end, share=0.7 if legend else 0.9)
    return drawn


def _limit_ranks(ax: Axes, top: float) -> None:
    # A margin below keeps marks at rank 0 whole.
    ax.set_ylim(-0.06 * top, 1.08 * top)
