"""Heat maps over layers and kinds of layer: ranks and densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftprune.errors import UsageError
from peftprune.plots.cells import (
    as_grid,
    colour_cells,
    hatch_cells,
    label_grid,
    panel_size,
    where,
    with_labels,
    write_in_cells,
)
from peftprune.plots.style import arrange, axes_or_new, contrasting
from peftprune.plots.validation import in_unit_interval, largest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from numpy.typing import ArrayLike

    from peftprune.plots.validation import Floats


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
    """Draw the ranks of one allocation: layers upwards (the first at the bottom), kinds of layer to the right.

    Args:
        ax: where to draw; None makes a figure of its own.
        ranks: layers × kinds, at least 0; NaN where there is no site, which leaves the cell empty.
        layer_labels: one per row. kind_labels: one per column.
        vmin, vmax: ranks at the ends of the colour map; `vmax` None takes the largest rank.
        cmap: a matplotlib colour map; the default can be read by the colour-blind and in grey.
        shared: layers × kinds, true where a site shares its factors with another; such cells are hatched.
        annotate: write each rank, rounded, into its cell, unless the cells are too small for that.

    Raises:
        UsageError: the shapes do not fit together, or there is no layer or kind.
    """
    import numpy as np

    values = as_grid("ranks", ranks, layer_labels, kind_labels)
    marked = np.zeros(values.shape, bool) if shared is None else np.asarray(shared, bool)
    if marked.shape != values.shape:
        raise UsageError.of("shared", marked.shape, "has another shape than ranks", f"Give {values.shape}")
    top = vmax if vmax is not None else largest(values)
    drawn = axes_or_new(ax, with_labels(panel_size(*values.shape), kind_labels))
    # A colour map needs two ends, even if all ranks are equal.
    mesh = colour_cells(drawn, values, vmin, max(top, vmin + 1), cmap)
    label_grid(drawn, layer_labels, kind_labels, title=title)
    by_ink: dict[str, list[tuple[int, int]]] = {}
    for cell in where(marked & ~np.isnan(values)):
        by_ink.setdefault(_ink(mesh, values[cell]), []).append(cell)
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
    """Draw which share of each site's entries is not zero: layers upwards, kinds of layer to the right.

    Args:
        ax: where to draw; None makes a figure of its own.
        densities: layers × kinds, 0 … 1; NaN where there is no site, which leaves the cell empty.
        layer_labels: one per row. kind_labels: one per column.
        cmap: a matplotlib colour map; its ends stand for 0 and 1, so that drawings can be compared.
        annotate: write each density in whole percent into its cell, unless the cells are too small for that.

    Raises:
        UsageError: the shapes do not fit together, there is no layer or kind, or a density is outside 0 … 1.
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
    """Write the values into the cells of a heat map, if they fit; NaN is left out.

    Means that are no whole numbers get a decimal, lest unlike cells bear one number.
    """
    import numpy as np

    if pattern == "{:.0f}" and has_decimals(values):
        pattern = "{:.1f}"
    texts = {cell: pattern.format(values[cell]).removesuffix(".0") for cell in where(~np.isnan(values))}
    write_in_cells(ax, texts, values.shape, lambda row, column: _ink(mesh, values[row, column]))


def has_decimals(values: Floats) -> bool:
    """Whether any value is shown with a decimal."""
    import numpy as np

    known = values[~np.isnan(values)]
    return bool((np.abs(known - known.round()) > 0.05).any())


def _ink(mesh: QuadMesh, value: float) -> str:
    """What can be read on the colour of `value`."""
    import numpy as np

    return contrasting(mesh.to_rgba(np.array([value]))[0][:3])
