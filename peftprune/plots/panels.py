from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from peftprune.errors import UsageError
from peftprune.plots.axes import even_columns, panels
from peftprune.plots.cells import panel_size
from peftprune.plots.heatmap import has_decimals, rank_heatmap, write_values
from peftprune.plots.labels import fit, short_kinds, wrap
from peftprune.plots.legends import colour_bar
from peftprune.plots.style import LINE_SPACING, TICK_SIZE, TITLE_SIZE, new_figure
from peftprune.plots.validation import Floats, largest


def plot_rank_panels(allocation: pd.DataFrame, path: str | Path | None = None, *, note: str = "") -> Figure:
    """Draws one rank heat map per method, with a common colour bar.

    Args:
        allocation: one row per method, seed and site, with the columns `method`, `layer`, `kind`, `rank` and,
            optionally, `shared_with` (the site whose factors are shared; empty or missing for none). Ranks are averaged
            over the rows of a cell, which are its seeds; a cell is hatched if at least half of them are shared.
            Methods and kinds keep their order of appearance.
        path: also save the figure there; the suffix selects the format.
        note: text below the panels, wrapped to the figure, such as the missing methods.

    Raises:
        UsageError: a column is missing or there are no rows.
    """
    missing = [column for column in ("method", "layer", "kind", "rank") if column not in allocation.columns]
    if missing or allocation.empty:
        problem = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise UsageError.of("allocation", list(allocation.columns), problem, "Give one row per method, seed and site")
    kinds = [str(kind) for kind in allocation["kind"].unique()]
    layers = list(range(int(allocation["layer"].max()) + 1))
    methods = allocation.groupby(allocation["method"].astype(str), sort=False)
    grids = {str(name): _grid(rows, layers, kinds) for name, rows in methods}

    width, height = panel_size(len(layers), len(kinds))
    if any(has_decimals(ranks) for ranks, _ in grids.values()):
        width = min(1.5 * width, 4.5)
    columns = even_columns(len(grids), width)
    rows = -(-len(grids) // columns)
    titles = [wrap(name, width) for name in grids]
    title_lines = max(title.count("\n") + 1 for title in titles)
    label_height = 0.045 * max(len(label) for label in short_kinds(kinds)) + 0.1
    figure_width = columns * width + 1.0
    below = ["hatched: shares its factors with another site"] * any(np.any(shared) for _, shared in grids.values())
    below += [fit(note, figure_width, size=TICK_SIZE)] * bool(note)
    note_height = max(0, "\n".join(below).count("\n")) * LINE_SPACING * TICK_SIZE / 72
    figure = new_figure((figure_width, rows * (height + 0.14 * title_lines) + label_height + 0.25 + note_height))
    axes = panels(figure, len(grids), columns)
    vmax = max(largest(ranks) for ranks, _ in grids.values())
    for i, (ax, title, (ranks, shared)) in enumerate(zip(axes, titles, grids.values(), strict=True)):
        rank_heatmap(ax, ranks, layers, kinds, vmax=vmax, shared=shared, annotate=False)
        ax.set_title(title, fontsize=TITLE_SIZE, parse_math=False)
        if i % columns:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        if i + columns < len(axes):  # there is a panel below, with the same kinds
            ax.tick_params(labelbottom=False)
    seeds = allocation["seed"].nunique() if "seed" in allocation.columns else 1
    colour_bar(axes, "rank" if seeds < 2 else f"rank (mean of {seeds} seeds)", integer=True)
    if below:
        figure.supxlabel("\n".join(below), fontsize=TICK_SIZE, parse_math=False)
    # The size of the cells is known only after the layout.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # so that saving does not compute the layout again
    for ax, (ranks, _) in zip(axes, grids.values(), strict=True):
        write_values(ax, ax.collections[0], ranks)
    if path is not None:
        figure.savefig(path, dpi=200)
    return figure


def _grid(rows: pd.DataFrame, layers: Sequence[int], kinds: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
    """Returns (mean ranks, shared) of one method, both layers × kinds; NaN and False where there is no site."""
    shared = pd.Series(False, index=rows.index)
    if "shared_with" in rows.columns:
        shared = rows["shared_with"].notna() & (rows["shared_with"].astype(str) != "")
    cells = rows.assign(kind=rows["kind"].astype(str), shared=shared.astype(float)).groupby(["layer", "kind"])
    means = cells[["rank", "shared"]].mean().reindex(pd.MultiIndex.from_product([layers, kinds]))
    shape = (len(layers), len(kinds))
    return means["rank"].to_numpy(float).reshape(shape), (means["shared"] >= 0.5).to_numpy(bool).reshape(shape)
