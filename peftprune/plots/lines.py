"""Ranks by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from peftprune.plots.axes import finish
from peftprune.plots.cells import as_grid
from peftprune.plots.labels import every, short_kinds, text_width
from peftprune.plots.legends import legend_beside, legend_height
from peftprune.plots.overlapping_lines import LEGEND, draw_alternating
from peftprune.plots.style import PAGE_WIDTH, axes_or_new, room
from peftprune.plots.validation import largest


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
    layers, kinds = values.shape
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
    top = max(largest(values), 1.0)
    # A margin below keeps marks at rank 0 whole.
    drawn.set_ylim(-0.06 * top, 1.08 * top)
    drawn.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    finish(drawn, title=title, xlabel="layer", ylabel="rank")
    if legend:
        legend_beside(drawn, title=LEGEND if kinds > 1 else "")
    return drawn
