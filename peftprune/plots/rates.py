"""Validation scores over learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from peftprune.plots.axes import finish
from peftprune.plots.curves import by_seed, draw_seeds
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
        series: label to (rates, scores): n ascending rates, and seeds × n scores; NaN where a trial diverged.
        chosen: label to the chosen rate, which a ring marks.

    Raises:
        UsageError: there is no series, or a seed has more scores than there are rates.
    """
    import numpy as np

    not_empty("series", series)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.8, legend_height(list(series)) + 0.5)))
    for i, (label, (rates, scores)) in enumerate(series.items()):
        grid, at = by_seed(label, scores, len(rates)), np.asarray(rates, dtype=float)
        draw_seeds(drawn, i, label, at, grid)
        best = np.isclose(at, (chosen or {}).get(label, np.nan), rtol=1e-9)
        colour = series_style(i)["color"]
        ring = {"s": 90, "facecolors": "none", "edgecolors": colour, "linewidths": 1.4, "zorder": 4}
        drawn.scatter(at[best], grid.mean(axis=0).filled(np.nan)[best], **ring)
    drawn.set_xscale("log")
    drawn.margins(x=0.05)
    finish(drawn, title=title, xlabel="learning rate (ring: chosen)", ylabel=ylabel)
    if legend:
        legend_beside(drawn)
    return drawn
