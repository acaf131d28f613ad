"""Grids of coloured cells: shapes, ticks, and text that fits into a cell."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgba
from numpy.typing import ArrayLike, NDArray

from peftprune.plots.axes import name
from peftprune.plots.labels import every, short_kinds, text_width
from peftprune.plots.style import LABEL_SIZE, LIGHT_INK, SMALLEST_TEXT, TICK_SIZE, contrasting, room
from peftprune.plots.validation import Floats, grid, not_empty

_MAX_LAYER_LABELS = 13
_MOST_LINED_ROWS = 32
_LONGEST_UPRIGHT = 3  # characters of a kind that fit without rotation
CLEAR = (0.0, 0.0, 0.0, 0.0)


def panel_size(layers: int, kinds: int) -> tuple[float, float]:
    """Returns (width, height) in inches of one grid of layers × kinds, without its labels."""
    return min(max(0.22 * kinds, 1.3), 4.5), min(max(0.15 * layers, 1.3), 3.2)


def with_labels(size: tuple[float, float], kind_labels: Sequence[str], beside: float = 0.0) -> tuple[float, float]:
    """Returns (width, height) of a figure with one axes of `size`, kinds below and `beside` inches at the right."""
    below = 0.7 * text_width("\n".join(short_kinds(kind_labels))) / 72
    return size[0] + beside + max(0.6, below), size[1] + below + 0.4


def as_grid(field: str, values: ArrayLike, layer_labels: Sequence[object], kind_labels: Sequence[str]) -> Floats:
    """Returns the values as floats, layers × kinds; masked cells become NaN. Raises UsageError for other shapes."""
    not_empty("layer_labels", layer_labels)
    not_empty("kind_labels", kind_labels)
    return grid(field, values, ("layers", len(layer_labels)), ("kinds", len(kind_labels)))


def colour_cells(ax: Axes, values: Floats, vmin: float, vmax: float, cmap: str) -> QuadMesh:
    """Colours cell (row, column) over x = column … column + 1 and y = row … row + 1; NaN stays clear."""
    rows, columns = values.shape
    # Thin lines separate neighbouring cells of similar value, but would hide very flat cells.
    line = to_rgba(LIGHT_INK) if rows <= _MOST_LINED_ROWS else CLEAR
    edges = np.where(np.isnan(values).ravel()[:, None], CLEAR, line)
    x, y, known = np.arange(columns + 1), np.arange(rows + 1), np.ma.masked_invalid(values)
    look: dict[str, Any] = {"cmap": colormaps[cmap].with_extremes(bad=CLEAR), "edgecolors": edges, "linewidth": 0.4}
    return ax.pcolormesh(x, y, known, vmin=vmin, vmax=vmax, clip_on=False, **look)


def label_grid(ax: Axes, layer_labels: Sequence[object], kind_labels: Sequence[str], *, title: str = "") -> None:
    """Labels layers upwards at the left and short kinds below; labels that would touch are rotated or left out."""
    width, height = room(ax)
    # The middle of cell (i, j) is at (j + 0.5, i + 0.5).
    kinds = short_kinds(kind_labels)
    # A kind is left out only where even vertical names would touch; the final layout is about a fifth wider.
    step = every(len(kinds), 1.2 * width)
    ax.set_xticks(np.arange(0, len(kinds), step) + 0.5, kinds[::step], fontsize=TICK_SIZE, parse_math=False)
    if max(map(len, kinds)) > _LONGEST_UPRIGHT:
        # Slanted and right-aligned, each name ends at its own column. Lines at 45 degrees are closer together than the
        # columns by the square root of 2.
        slanted = step * width / len(kinds) > 1.75 * TICK_SIZE
        for label in ax.get_xticklabels():
            align = "top" if slanted else "center"
            label.set(rotation=45 if slanted else 90, ha="right", va=align, rotation_mode="anchor")
        # Long names take more of the figure than is reserved at first.
        height = min(height, height / 0.77 - (0.75 if slanted else 1.0) * text_width("\n".join(kinds)) - 3 * TICK_SIZE)
    rows = len(layer_labels)
    step = max(-(-rows // _MAX_LAYER_LABELS), every(rows, height))
    names = [str(label) for label in layer_labels[::step]]
    ax.set_yticks(np.arange(0, rows, step) + 0.5, names, fontsize=TICK_SIZE, parse_math=False)
    ax.tick_params(length=2, pad=2)
    ax.set_ylabel("layer", fontsize=LABEL_SIZE)
    name(ax, title)


def write_in_cells(
    ax: Axes, texts: Mapping[tuple[int, int], str], shape: tuple[int, int], ink: Callable[[int, int], str]
) -> bool:
    """Writes texts into cells in the largest type that fits all, unless that is too small. Returns whether it did."""
    width, height = room(ax)
    rows, columns = shape
    longest = max(map(len, texts.values()), default=1)
    # A digit is about 0.64 of the type's size wide; some space stays free around the text.
    size = min(TICK_SIZE, 0.78 * height / rows, 0.85 * width / columns / (0.64 * longest))
    if size < SMALLEST_TEXT:
        return False
    for (row, column), text in texts.items():
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center_baseline", fontsize=size, color=ink(row, column))
    return bool(texts)


def hatch_cells(ax: Axes, cells: Sequence[tuple[int, int]], hatch: str, ink: str, alpha: float = 0.45) -> None:
    """Hatches cells (row, column), without lines around them."""
    if cells:
        corners = [[(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1)] for i, j in cells]
        # The hatching takes the colour of the edges, which have no width.
        look: dict[str, Any] = {"facecolors": "none", "edgecolors": ink, "linewidth": 0.0, "hatch": hatch}
        ax.add_collection(PolyCollection(corners, alpha=alpha, **look), autolim=False)


def where(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in zip(*chosen.nonzero(), strict=True)]


def ink_on(mesh: Collection, value: float) -> str:
    return contrasting(mesh.to_rgba(np.array([value]))[0][:3])
