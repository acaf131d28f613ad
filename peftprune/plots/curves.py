"""Means and ranges over seeds: losses over the steps of training, and scores over learning rates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from peftprune.errors import UsageError
from peftprune.plots.axes import finish
from peftprune.plots.bands import Phase, as_steps
from peftprune.plots.legends import legend_beside, legend_height
from peftprune.plots.overlapping_lines import spaced
from peftprune.plots.style import PAGE_WIDTH, axes_or_new, series_style
from peftprune.plots.validation import not_empty


def learning_curves(
    ax: Axes | None,
    series: Mapping[str, tuple[Any, Any]],
    *,
    phases: Mapping[str, Sequence[Phase]] | None = None,
    chosen: Mapping[str, float] | None = None,
    log: bool = False,
    title: str = "",
    xlabel: str = "optimizer step",
    ylabel: str = "training loss",
    legend: bool = True,
) -> Axes:
    """Draws mean losses over steps, with a band from the smallest to the largest over seeds.

    Args:
        series: label to (steps, losses): n increasing steps, and seeds × n losses, or n for one seed, or a list of
            lists for seeds that stopped early (the rest is missing). NaN and infinite losses are left out; a series
            without any loss is named "(no result)".
        phases: label to its (name, start, stop) in steps; dotted lines in the colour of the series mark where phases
            begin; they alternate where several series share a boundary.
        chosen: label to the step that a ring marks.
        log: draws steps, which need not be whole numbers, on a logarithmic axis.

    Raises:
        UsageError: there is no series, steps do not increase, or a seed has more losses than there are steps.
    """
    not_empty("series", series)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.8, legend_height(list(series)) + 0.5)))
    for i, (label, (steps, losses)) in enumerate(series.items()):
        at, _ = as_steps(steps, None)
        grid = _by_seed(label, losses, len(at))
        means = grid.mean(axis=0).filled(np.nan)
        marks = spaced(i, len(series)) if grid.count() else None
        style = series_style(i) | {"linewidth": 1.1, "markersize": 4.2, "markevery": marks}
        if chosen and label in chosen:
            ring = np.isclose(at, chosen[label], rtol=1e-9)
            look: dict[str, Any] = {"edgecolors": style["color"], "linewidths": 1.4, "zorder": 4}
            drawn.scatter(at[ring], means[ring], 90, facecolors="none", **look)
        drawn.plot(at, means, label=label if grid.count() else f"{label} (no result)", **style)
        if len(grid) > 1:
            least, most = grid.min(axis=0).filled(np.nan), grid.max(axis=0).filled(np.nan)
            drawn.fill_between(at, least, most, facecolor=style["color"], alpha=0.18, linewidth=0, zorder=1.5)
    _mark_phases(drawn, list(series), phases or {})
    drawn.margins(x=0.02)
    drawn.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if log:
        drawn.set_xscale("log")
    finish(drawn, title=title, xlabel=xlabel, ylabel=ylabel)
    if legend:
        legend_beside(drawn)
    return drawn


def _by_seed(label: str, losses: Any, n: int) -> np.ma.MaskedArray[Any, np.dtype[np.float64]]:
    """Returns seeds × n losses, masked where they are missing or not finite."""
    rows = [losses] if np.ndim(losses[0] if len(losses) else 0.0) == 0 else list(losses)
    grid: NDArray[np.float64] = np.full((len(rows), n), np.nan)
    for seed, row in enumerate(rows):
        if len(row) > n:
            problem = "losses are more than its steps"
            raise UsageError.of(f"series[{label!r}]", len(row), problem, f"There are {n} steps")
        grid[seed, : len(row)] = np.ma.filled(np.ma.asarray(row, dtype=float), np.nan)
    return np.ma.masked_invalid(grid)


def _mark_phases(ax: Axes, labels: Sequence[str], phases: Mapping[str, Sequence[Phase]]) -> None:
    unknown = [label for label in phases if label not in labels]
    if unknown:
        raise UsageError.of("phases", unknown[0], "is not a label of the series", f"Labels: {', '.join(labels)}")
    marked_labels = [label for label in labels if phases.get(label)]
    dot = 1.6
    gap = dot * max(len(marked_labels), 2)
    for turn, label in enumerate(marked_labels):
        colour = series_style(labels.index(label))["color"]
        first = min(start for _, start, _ in phases[label])
        for _, start, _ in phases[label]:
            if start > first:
                # Dots alternate, so that all boundaries at the same step show.
                dots = (turn * dot, (dot, gap - dot + (0.4 if gap > 2 * dot else 0.0)))
                ax.axvline(start, color=colour, linewidth=1.0, linestyle=dots, zorder=1.2)
