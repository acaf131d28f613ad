"""Heat maps: ranks and densities over layers and kinds of layer, and the agreement of selections."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.plots import cells
from peftprune.plots.axes import name
from peftprune.plots.labels import every, fit
from peftprune.plots.style import GREY, LINE_SPACING, TICK_SIZE, arrange, axes_or_new, room
from peftprune.plots.validation import Floats, grid, in_unit_interval, largest, not_empty

_MOST_WRITTEN = 15
"""Rows of a matrix of overlaps whose numbers are written; of more the colours tell."""
_LONGEST_BELOW = 6  # characters that fit under a column; longer labels are numbered
_LABEL_WIDTH = 1.7  # inches


def rank_heatmap(
    ax: Axes | None,
    ranks: ArrayLike,
    layer_labels: Sequence[object],
    kind_labels: Sequence[str],
    *,
    title: str = "",
    vmin: float = 0.0,
    vmax: float | None = None,
    cmap: str = "viridis",
    shared: ArrayLike | None = None,
    annotate: bool = True,
) -> Axes:
    """Draws the ranks of one allocation: layers upwards (the first at the bottom), kinds of layer to the right.

    Args:
        ranks: layers × kinds, at least 0; NaN where there is no site, which leaves the cell empty.
        layer_labels: one per row. kind_labels: one per column.
        vmin, vmax: ranks at the ends of the colour map; `vmax` None takes the largest rank.
        cmap: a matplotlib colour map; the default is legible to the colour-blind and in grey.
        shared: layers × kinds, true where a site shares its factors with another; such cells are hatched.
        annotate: write each rank, rounded, into its cell, unless the cells are too small.

    Raises:
        UsageError: the shapes do not match, or there is no layer or kind.
    """
    values = cells.as_grid("ranks", ranks, layer_labels, kind_labels)
    marked = np.zeros(values.shape, bool) if shared is None else np.asarray(shared, bool)
    if marked.shape != values.shape:
        raise UsageError.of("shared", marked.shape, "has another shape than ranks", f"Give {values.shape}")
    top = vmax if vmax is not None else largest(values)
    drawn = axes_or_new(ax, cells.with_labels(cells.panel_size(*values.shape), kind_labels))
    # A colour map needs two different ends, even if all ranks are equal.
    mesh = cells.colour_cells(drawn, values, vmin, max(top, vmin + 1), cmap)
    cells.label_grid(drawn, layer_labels, kind_labels, title=title)
    by_ink: dict[str, list[tuple[int, int]]] = {}
    for cell in cells.where(marked & ~np.isnan(values)):
        by_ink.setdefault(cells.ink_on(mesh, values[cell]), []).append(cell)
    for ink, alike in by_ink.items():
        cells.hatch_cells(drawn, alike, "////", ink)
    if annotate:
        if ax is None:
            arrange(drawn)
        write_values(drawn, mesh, values)
    return drawn


def density_heatmap(
    ax: Axes | None,
    densities: ArrayLike,
    layer_labels: Sequence[object],
    kind_labels: Sequence[str],
    *,
    title: str = "",
    cmap: str = "cividis",
    annotate: bool = True,
) -> Axes:
    """Draws the share of each site's entries that is not zero: layers upwards, kinds of layer to the right.

    Args:
        densities: layers × kinds, 0 … 1; NaN where there is no site, which leaves the cell empty.
        layer_labels: one per row. kind_labels: one per column.
        cmap: a matplotlib colour map; its ends are 0 and 1, so that plots are comparable.
        annotate: write each density in whole percent into its cell, unless the cells are too small.

    Raises:
        UsageError: the shapes do not match, there is no layer or kind, or a density is outside 0 … 1.
    """
    values = cells.as_grid("densities", densities, layer_labels, kind_labels)
    in_unit_interval("densities", values)
    drawn = axes_or_new(ax, cells.with_labels(cells.panel_size(*values.shape), kind_labels))
    mesh = cells.colour_cells(drawn, values, 0.0, 1.0, cmap)
    cells.label_grid(drawn, layer_labels, kind_labels, title=title)
    if annotate:
        if ax is None:
            arrange(drawn)
        write_values(drawn, mesh, values, "{:.0%}")
    return drawn


def overlap_matrix(
    ax: Axes | None, values: ArrayLike, labels: Sequence[object], *, title: str = "", cmap: str = "cividis"
) -> Axes:
    """Draws pairwise overlaps as a square matrix: the first label at the top and at the left.

    Long labels are numbered at the left, and columns show the numbers. Undefined overlaps are hatched in grey.

    Args:
        values: n × n, 0 … 1; NaN where an overlap is undefined, such as that of two empty selections.
        labels: n, of both rows and columns.
        cmap: a matplotlib colour map; its ends are 0 and 1.

    Raises:
        UsageError: there is no label, the shape is not n × n, or a value is outside 0 … 1.
    """
    not_empty("labels", labels)
    n = len(labels)
    shares = grid("values", values, ("labels", n), ("labels", n))
    in_unit_interval("values", shares)
    names = [str(label) for label in labels]
    long = max(map(len, names)) > _LONGEST_BELOW
    below = [str(i) for i in range(1, n + 1)] if long else names
    if long:
        names = [f"{i}  {label}" for i, label in enumerate(names, 1)]
    # Of each row: its label's lines, and space for a number.
    most_lines = max(fit(label, _LABEL_WIDTH).count("\n") + 1 for label in names) if long else 1
    length = max(n * max(0.3, (most_lines * LINE_SPACING + 0.4) * TICK_SIZE / 72), 1.0)
    drawn = axes_or_new(ax, (length + (_LABEL_WIDTH + 0.3 if long else 0.6), length + 0.6))
    drawn.set_aspect("equal")
    mesh = cells.colour_cells(drawn, shares, 0.0, 1.0, cmap)
    drawn.set(xlim=(0, n), ylim=(n, 0))
    side = min(room(drawn))
    # Given axes may be too low for three lines.
    lines = 3 if ax is None else max(1, min(3, int(side / n / (LINE_SPACING * TICK_SIZE))))
    step = every(n, side)
    middles = np.arange(0, n, step) + 0.5
    beside = [fit(label, _LABEL_WIDTH, lines) for label in names[::step]]
    drawn.set_yticks(middles, beside, fontsize=TICK_SIZE, parse_math=False)
    drawn.set_xticks(middles, below[::step], fontsize=TICK_SIZE, parse_math=False)
    if not long and max(map(len, names)) * 0.64 * TICK_SIZE > side / n:
        drawn.tick_params(axis="x", labelrotation=90)
    drawn.tick_params(length=2, pad=2)
    name(drawn, title)
    cells.hatch_cells(drawn, cells.where(np.isnan(shares)), "xxxx", GREY)
    if ax is None:
        arrange(drawn)
    known = {cell: f"{shares[cell]:.2f}" for cell in cells.where(~np.isnan(shares))} if n <= _MOST_WRITTEN else {}
    cells.write_in_cells(drawn, known, (n, n), lambda i, j: cells.ink_on(mesh, shares[i, j]))
    return drawn


def write_values(ax: Axes, mesh: Collection, values: Floats, pattern: str = "{:.0f}") -> None:
    """Writes the values into the cells of a heat map, if they fit; NaN is left out.

    Means that are not whole numbers get a decimal, so that different cells have different numbers.
    """
    if pattern == "{:.0f}" and has_decimals(values):
        pattern = "{:.1f}"
    texts = {cell: pattern.format(values[cell]).removesuffix(".0") for cell in cells.where(~np.isnan(values))}
    cells.write_in_cells(ax, texts, values.shape, lambda row, column: cells.ink_on(mesh, values[row, column]))


def has_decimals(values: Floats) -> bool:
    """Returns whether any value is shown with a decimal."""
    known = values[~np.isnan(values)]
    return bool((np.abs(known - known.round()) > 0.05).any())
