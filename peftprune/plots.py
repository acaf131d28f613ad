"""Pictures of rank allocations: numbers in, axes or a figure out.

Nothing here touches pyplot or the global style, so that it works without a display and beside the caller's own plots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftprune.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

# Sizes in inches (one page column is about 6.5 wide) and points.
_MAX_WIDTH = 10.0
_TITLE_SIZE, _LABEL_SIZE, _TICK_SIZE = 8.0, 8.0, 6.5
_SMALLEST_TEXT = 5.0
_MAX_LAYER_LABELS = 13
_MOST_LINED_LAYERS = 32
_LONGEST_UPRIGHT = 3  # characters of a kind that need no turning

# What the parts of a kind are called on an axis; each figure keeps the full name where two would become the same.
_SHORT = {
    "attention": "attn",
    "self_attn": "self",
    "SelfAttention": "self",
    "encoder_attn": "cross",
    "EncDecAttention": "cross",
    "crossattention": "cross",
    "intermediate": "inter",
    "output": "out",
    "encoder": "enc",
    "decoder": "dec",
}


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
        UsageError: the shapes do not fit together.
    """
    import numpy as np
    from matplotlib import colormaps

    values = np.asarray(ranks, dtype=float)
    if values.shape != (len(layer_labels), len(kind_labels)):
        cure = f"There are {len(layer_labels)} layer labels and {len(kind_labels)} kind labels"
        raise UsageError.of("ranks", values.shape, "is not layers × kinds", cure)
    marked = np.zeros(values.shape, bool) if shared is None else np.asarray(shared, bool)
    if marked.shape != values.shape:
        raise UsageError.of("shared", marked.shape, "has another shape than ranks", f"Give {values.shape}")
    if ax is None:
        ax = _new_figure(_panel_size(*values.shape)).add_subplot()

    top = vmax if vmax is not None else _largest(values)
    ax.pcolormesh(
        np.ma.masked_invalid(values),
        vmin=vmin,
        vmax=max(top, vmin + 1),  # a colour map needs two ends, even if all ranks are equal
        cmap=colormaps[cmap].with_extremes(bad="white"),
        # Thin lines keep neighbouring cells of similar rank apart; they would drown very flat cells.
        edgecolors="white" if len(values) <= _MOST_LINED_LAYERS else "none",
        linewidth=0.4,
    )
    rows, columns = values.shape
    step = -(-rows // _MAX_LAYER_LABELS)
    # pcolormesh puts the middle of cell (i, j) at (j + 0.5, i + 0.5).
    ax.set_yticks(np.arange(0, rows, step) + 0.5, [str(label) for label in layer_labels[::step]], fontsize=_TICK_SIZE)
    names = short_kinds(kind_labels)
    ax.set_xticks(np.arange(columns) + 0.5, names, fontsize=_TICK_SIZE)
    if max(map(len, names), default=0) > _LONGEST_UPRIGHT:
        # Right-aligned at 45 degrees, the end of each name touches its own column.
        for label in ax.get_xticklabels():
            label.set(rotation=45, ha="right", va="top", rotation_mode="anchor")
    ax.tick_params(length=2, pad=2)
    ax.set_ylabel("layer", fontsize=_LABEL_SIZE)
    if title:
        ax.set_title(title, fontsize=_TITLE_SIZE, parse_math=False)
    _hatch(ax, values, marked)
    if annotate:
        _annotate(ax, values)
    return ax


def plot_rank_panels(allocation: pd.DataFrame, path: str | Path | None = None) -> Figure:
    """One rank heat map for each method, with a common colour bar.

    Args:
        allocation: one row for each method, seed and site, with the columns `method`, `layer`, `kind`, `rank` and,
            optionally, `shared_with` (the site whose factors are shared; empty or missing for none). Ranks are averaged
            over the rows of a cell, which are its seeds; a cell is hatched if at least half of them are shared.
            Methods and kinds keep their order of appearance.
        path: also save the figure there; the ending chooses the format.

    Raises:
        UsageError: a column is missing or there are no rows.
    """
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    missing = [column for column in ("method", "layer", "kind", "rank") if column not in allocation.columns]
    if missing or allocation.empty:
        problem = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise UsageError.of("allocation", list(allocation.columns), problem, "Give one row a method, seed and site")
    methods = [str(name) for name in allocation["method"].unique()]
    kinds = [str(kind) for kind in allocation["kind"].unique()]
    layers = list(range(int(allocation["layer"].max()) + 1))
    grids = {name: _grid(allocation[allocation["method"].astype(str) == name], layers, kinds) for name in methods}

    width, height = _panel_size(len(layers), len(kinds))
    columns = _grid_columns(len(methods), width)
    rows = -(-len(methods) // columns)
    titles = {name: _wrap(name, width) for name in methods}
    title_lines = max(title.count("\n") + 1 for title in titles.values())
    label_height = 0.045 * max(len(label) for label in short_kinds(kinds)) + 0.1
    figure = _new_figure(
        (columns * width + 1.0, rows * (height + 0.14 * title_lines) + label_height + 0.25),
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    vmax = max(_largest(ranks) for ranks, _ in grids.values())
    for i, (name, ax) in enumerate(zip(methods, axes, strict=False)):
        ranks, shared = grids[name]
        rank_heatmap(ax, ranks, layers, kinds, title=titles[name], vmax=vmax, shared=shared, annotate=False)
        if i % columns:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if i + columns < len(methods):  # there is a panel below, with the same kinds
            ax.tick_params(labelbottom=False)
    for ax in axes[len(methods) :]:
        ax.remove()
    drawn = list(axes[: len(methods)])
    bar = figure.colorbar(drawn[0].collections[0], ax=drawn, aspect=25, pad=0.015, fraction=0.05)
    seeds = allocation["seed"].nunique() if "seed" in allocation.columns else 1
    bar.set_label("rank" if seeds < 2 else f"rank (mean of {seeds} seeds)", fontsize=_LABEL_SIZE)
    bar.ax.tick_params(labelsize=_TICK_SIZE, length=2)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    if any(np.any(shared) for _, shared in grids.values()):
        figure.supxlabel("hatched: shares its factors with another site", fontsize=_TICK_SIZE)
    # The size of the cells is known only once everything around them has its place.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # and keeps it, so that saving need not arrange everything again
    for name, ax in zip(methods, drawn, strict=True):
        _annotate(ax, grids[name][0])
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure


def short_kinds(kinds: Sequence[str]) -> list[str]:
    """Shorter names for an axis: `attention.output.dense` becomes `attn.out`, `encoder.q_proj` becomes `enc.q`.

    Names that would become equal stay as they are, so that the results differ whenever the kinds do.
    """
    short = [_short_kind(str(kind)) for kind in kinds]
    return [brief if short.count(brief) == 1 else str(kind) for kind, brief in zip(kinds, short, strict=True)]


def _short_kind(kind: str) -> str:
    parts = [_SHORT.get(part, part) for part in kind.split(".")]
    if len(parts) > 1 and parts[-1] == "dense":
        parts.pop()
    return re.sub(r"_(proj|lin)$", "", ".".join(parts))


def _grid(
    rows: pd.DataFrame, layers: Sequence[int], kinds: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(mean ranks, shared) of one method, both layers × kinds; NaN and False where there is no site."""
    import pandas as pd

    shared = pd.Series(False, index=rows.index)
    if "shared_with" in rows.columns:
        shared = rows["shared_with"].notna() & (rows["shared_with"].astype(str) != "")
    cells = rows.assign(kind=rows["kind"].astype(str), shared=shared.astype(float)).groupby(["layer", "kind"])
    index = pd.MultiIndex.from_product([layers, kinds], names=["layer", "kind"])
    means = cells[["rank", "shared"]].mean().reindex(index)
    shape = (len(layers), len(kinds))
    return means["rank"].to_numpy(float).reshape(shape), (means["shared"] >= 0.5).to_numpy(bool).reshape(shape)


def _new_figure(size: tuple[float, float]) -> Figure:
    """A figure with its own canvas, outside pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _panel_size(layers: int, kinds: int) -> tuple[float, float]:
    """(width, height) of one panel in inches."""
    return min(max(0.22 * kinds, 1.3), 4.5), min(max(0.15 * layers, 1.3), 3.2)


def _grid_columns(panels: int, width: float) -> int:
    """Panels side by side: as many as fit, evenly spread over the rows that this takes."""
    most = max(1, int((_MAX_WIDTH - 1.0) / width))
    rows = -(-panels // min(most, 5))
    return -(-panels // rows)


def _wrap(name: str, width: float) -> str:
    """Break a method's label into lines that fit `width` inches, preferably after punctuation."""
    most = max(8, int(width * 72 / (0.56 * _TITLE_SIZE)))
    lines = [""]
    for piece in re.findall(r"[^\s:(,_=-]*[\s:(,_=-]|[^\s:(,_=-]+", name):
        for part in (piece[i : i + most] for i in range(0, len(piece), most)):
            if len(lines[-1]) + len(part.rstrip()) > most:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _largest(ranks: NDArray[np.float64]) -> float:
    """The largest rank that is not NaN; 0 if there is none."""
    known = ranks[ranks == ranks]
    return float(known.max()) if known.size else 0.0


def _ink(ax: Axes, value: float) -> str:
    """Black or white, whichever is easier to read on the colour of `value`."""
    import numpy as np

    red, green, blue, _ = ax.collections[0].to_rgba(np.array([value]))[0]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _hatch(ax: Axes, ranks: NDArray[np.float64], shared: NDArray[np.bool_]) -> None:
    from matplotlib.patches import Rectangle

    for row, column in zip(*shared.nonzero(), strict=True):
        value = ranks[row, column]
        if value == value:
            corner = (column, row)
            # Without a line around it, only the hatching shows; it takes the colour of the edge.
            style: dict[str, Any] = {"fill": False, "hatch": "////", "linewidth": 0.0, "alpha": 0.45}
            ax.add_patch(Rectangle(corner, 1, 1, edgecolor=_ink(ax, value), **style))


def _annotate(ax: Axes, ranks: NDArray[np.float64]) -> None:
    """Write the ranks into the cells, in the largest type that fits; not at all if it would be too small."""
    import numpy as np

    box = ax.get_window_extent()
    points = 72.0 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    rows, columns = ranks.shape
    digits = len(f"{_largest(ranks):.0f}")
    # A digit is about 0.64 of the type's size wide; some air is left around the number.
    size = min(_TICK_SIZE, 0.78 * box.height * points / rows, 0.85 * box.width * points / columns / (0.64 * digits))
    if size < _SMALLEST_TEXT:
        return
    for row, column in zip(*np.nonzero(~np.isnan(ranks)), strict=True):
        value = ranks[row, column]
        ax.text(
            column + 0.5,
            row + 0.5,
            f"{value:.0f}",
            ha="center",
            va="center_baseline",
            fontsize=size,
            color=_ink(ax, value),
        )
