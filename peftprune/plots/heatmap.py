"""Heat maps over layers and kinds of layer: ranks and densities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.plots.cells import (
    as_grid,
    colour_cells,
    hatch_cells,
    ink_on,
    label_grid,
    panel_size,
    where,
    with_labels,
    write_in_cells,
)
from peftprune.plots.style import arrange, axes_or_new
from peftprune.plots.validation import Floats, in_unit_interval, largest


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
    values = as_grid("ranks", ranks, layer_labels, kind_labels)
    marked = np.zeros(values.shape, bool) if shared is None else np.asarray(shared, bool)
    if marked.shape != values.shape:
        raise UsageError.of("shared", marked.shape, "has another shape than ranks", f"Give {values.shape}")
    top = vmax if vmax is not None else largest(values)
    drawn = axes_or_new(ax, with_labels(panel_size(*values.shape), kind_labels))
    # A colour map needs two different ends, even if all ranks are equal.
    mesh = colour_cells(drawn, values, vmin, max(top, vmin + 1), cmap)
    label_grid(drawn, layer_labels, kind_labels, title=title)
    by_ink: dict[str, list[tuple[int, int]]] = {}
    for cell in where(marked & ~np.isnan(values)):
        by_ink.setdefault(ink_on(mesh, values[cell]), []).append(cell)
    for ink, cells in by_ink.items():
        hatch_cells(drawn, cells, "////", ink)
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
    values = as_grid("densities", densities, layer_labels, kind_labels)
    in_unit_interval("densities", values)
    drawn = axes_or_new(ax, with_labels(panel_size(*values.shape), kind_labels))
    mesh = colour_cells(drawn, values, 0.0, 1.0, cmap)
    label_grid(drawn, layer_labels, kind_labels, title=title)
    if annotate:
        if ax is None:
            arrange(drawn)
        write_values(drawn, mesh, values, "{:.0%}")
    return drawn


def write_values(ax: Axes, mesh: QuadMesh, values: Floats, pattern: str = "{:.0f}") -> None:
    """Writes the values into the cells of a heat map, if they fit; NaN is left out.

    Means that are not whole numbers get a decimal, so that different cells have different numbers.
    """
    if pattern == "{:.0f}" and has_decimals(values):
        pattern = "{:.1f}"
    texts = {cell: pattern.format(values[cell]).removesuffix(".0") for cell in where(~np.isnan(values))}
    write_in_cells(ax, texts, values.shape, lambda row, column: ink_on(mesh, values[row, column]))


def has_decimals(values: Floats) -> bool:
    """Returns whether any value is shown with a decimal."""
    known = values[~np.isnan(values)]
    return bool((np.abs(known - known.round()) > 0.05).any())
