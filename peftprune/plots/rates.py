"""Validation scores over learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from peftprune.plots.axes import finish
from peftprune.plots.curves import by_seed
from peftprune.plots.legends import legend_beside, legend_height
from peftprune.plots.style import PAGE_WIDTH, axes_or_new, series_style
from peftprune.plots.validation import not_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rate_curves(
    ax: Axes | None,
    series: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    *,
    chosen: Mapping[str, float] | None = None,
    title: str = "",
    ylabel: str = "validation score",
    legend: bool = True,
) -> Axes:
    """Draws mean scores over learning rates, with a band from the smallest to the largest over seeds.

    Args:
        ax: the axes to draw on; None makes a new figure.
        series: label to (rates, scores): n ascending rates, and seeds × n scores; NaN where a trial diverged.
        chosen: label to the chosen rate, which a ring marks.
        ylabel: label of the vertical axis.
        legend: name the series at the right.

    Raises:
        UsageError: there is no series, or a seed has more scores than there are rates.
    """
    import numpy as np

    not_empty("series", series)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.8, legend_height(list(series)) + 0.5)))
    for i, (label, (rates, scores)) in enumerate(series.items()):
        grid, at = by_seed(label, scores, len(rates)), np.asarray(rates, dtype=float)
        mean, style = grid.mean(axis=0).filled(np.nan), series_style(i) | {"linewidth": 1.1, "markersize": 4.2}
        drawn.plot(at, mean, label=label, **style)
        if len(grid) > 1:
            least, most = grid.min(axis=0).filled(np.nan), grid.max(axis=0).filled(np.nan)
            drawn.fill_between(at, least, most, facecolor=style["color"], alpha=0.18, linewidth=0, zorder=1.5)
        best = np.isclose(at, (chosen or {}).get(label, np.nan), rtol=1e-9)
        ring = {"s": 90, "facecolors": "none", "edgecolors": style["color"], "linewidths": 1.4, "zorder": 4}
        drawn.scatter(at[best], mean[best], **ring)
    drawn.set_xscale("log")
    drawn.margins(x=0.05)
    finish(drawn, title=title, xlabel="learning rate (ring: chosen)", ylabel=ylabel)
    if legend:
        legend_beside(drawn)
    return drawn
