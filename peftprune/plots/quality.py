"""Quality against the number of parameters."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform
from numpy.typing import ArrayLike

from peftprune.plots.axes import finish
from peftprune.plots.labels import text_width
from peftprune.plots.legends import WIDTH, legend_beside, legend_height
from peftprune.plots.style import GREY, PAGE_WIDTH, axes_or_new, room, series_style
from peftprune.plots.validation import Floats, column, forbid, not_empty

_LOG_FROM = 4.0  # ratio of the largest to the smallest number of parameters
_SAME = 0.02  # share of the axis within which points count as equal
_LANE = 7.0  # points between methods with equal numbers of parameters
_RING: dict[str, Any] = {"marker": "o", "markersize": 9.5, "markerfacecolor": "none"}
_RING |= {"markeredgecolor": "black", "markeredgewidth": 0.8}
_MOST_BUDGETS = 7  # labelled individually below the axis


def quality_against_parameters(
    ax: Axes | None,
    params: ArrayLike,
    mean: ArrayLike,
    low: ArrayLike | None,
    high: ArrayLike | None,
    labels: Sequence[str],
    *,
    pareto: ArrayLike | None = None,
    metric: str = "",
    higher_is_better: bool = True,
    limits: tuple[float, float] | None = None,
    title: str = "",
    legend: bool = True,
) -> Axes:
    """Draws quality over trainable parameters: one line per method through its budgets.

    Where several methods have about the same number of parameters, they are drawn a few points side by side, so that
    all of them show, and the axis says so. Their positions on the vertical axis are exact. The horizontal axis is
    logarithmic if the numbers differ by more than a factor of 4.

    Args:
        params: n numbers of trainable parameters, above 0.
        mean: n values of the metric; NaN for an arm without a result.
        low, high: n ends of the intervals, in the metric; NaN, or None for all, where there is none.
        labels: n methods; points of equal labels belong together. Methods keep their order of appearance.
        pareto: n truth values, the points with a ring on the frontier, such as `peftprune.stats.pareto_set` returns;
            None draws no frontier.
        metric: name of the metric. higher_is_better: its direction.
        limits: (least, greatest) value of the metric; longer intervals are cut off at the axes.

    Raises:
        UsageError: there is no point, lengths differ, or a number of parameters is not above 0.
    """
    not_empty("labels", labels)
    n = len(labels)
    size, quality = column("params", params, n), column("mean", mean, n)
    missing = np.full(n, np.nan)
    lows = missing if low is None else column("low", low, n)
    highs = missing if high is None else column("high", high, n)
    forbid("params", size, ~(size > 0), "is not above 0", "Leave out methods without parameters")
    best = np.zeros(n) if pareto is None else column("pareto", pareto, n)
    methods = list(dict.fromkeys(map(str, labels)))
    of = np.array([methods.index(str(label)) for label in labels])

    drawn = axes_or_new(ax, (PAGE_WIDTH, max(3.0, legend_height([*methods, "", ""]) + 0.5)))
    # The layout of the legend and of the labels at the left is not known yet.
    width = PAGE_WIDTH - 0.8 - (WIDTH if legend else 0.0)
    points = width * 72 if ax is None else (0.65 if legend else 0.9) * room(drawn)[0]
    lanes, places = _horizontal(drawn, size, of, len(methods), points)
    order = np.argsort(size, kind="stable")
    found = np.column_stack([size, quality, lows, highs, best])[order]
    inches = drawn.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
    for i, method in enumerate(methods):
        shift = ScaledTranslation(lanes[i] / 72, 0, inches)
        own = found[(of[order] == i) & ~np.isnan(found[:, 1])]
        _draw_method(drawn, method, i, own, drawn.transData + shift)
    _draw_frontier(drawn, found[found[:, 4] > 0])
    _vertical(drawn, np.concatenate([quality, lows, highs]), limits)
    direction = "higher is better" if higher_is_better else "lower is better"
    beside = "\n(methods of equal size drawn side by side)" if any(lanes) else ""
    finish(drawn, title=title, xlabel=f"trainable parameters{beside}", ylabel=f"{metric} ({direction})".strip())
    _tick_budgets(drawn, places, points)
    if legend:
        legend_beside(drawn)
    return drawn


def _horizontal(ax: Axes, size: Floats, of: Floats, methods: int, points: float) -> tuple[list[float], Floats]:
    """Sets the axis; returns each method's shift in points of type, and the places with data."""
    log = bool(size.max() / size.min() > _LOG_FROM)
    ax.set_xscale("log" if log else "linear")
    at = np.log(size) if log else size
    low, high = at.min(), at.max()
    # The axis spans at least a fifth of the largest size, so that rounding differences do not look large.
    length = max(high - low, (0.2 if log else 0.2 * abs(high)) or 1.0)
    low, high = (low + high - length) / 2, (low + high + length) / 2
    order = np.argsort(at)
    clusters = np.split(order, (np.diff(at[order]) > _SAME * length).nonzero()[0] + 1)
    middles = np.array([np.median(at[cluster]) for cluster in clusters])
    lane = 0.0
    if any(len(set(of[cluster])) > 1 for cluster in clusters):
        # Part of the distance between neighbouring places stays free.
        gap = float(np.diff(middles).min()) / length * 0.8 * points if len(middles) > 1 else points
        lane = max(min(_LANE, 0.6 * gap / methods), 1.5)
    margin = length * (0.06 + 0.6 * lane * methods / points)
    limits = np.array([low - margin, high + margin])
    ax.set_xlim(*(np.exp(limits) if log else limits))
    lanes = [(i - (methods - 1) / 2) * lane for i in range(methods)]
    return lanes, np.exp(middles) if log else middles


def _draw_method(ax: Axes, method: str, index: int, points: Floats, place: Transform) -> None:
    """Draws points (n, 5), by size: their size, quality, ends of the interval, and whether they have a ring."""
    size, quality, low, high, best = points.T
    style = series_style(index) | {"linewidth": 1.1, "markersize": 5.0}
    ax.plot(size, quality, label=method if len(points) else f"{method} (no result)", transform=place, **style)
    known = ~np.isnan(low) & ~np.isnan(high)
    bars = np.column_stack([low, high, np.full(len(low), np.nan)])[known].ravel()
    bar = {"color": style["color"], "zorder": style["zorder"], "linewidth": 0.9, "marker": "_", "markersize": 4.0}
    ax.plot(np.repeat(size[known], 3), bars, transform=place, **bar)
    ax.plot(size[best > 0], quality[best > 0], linestyle="none", zorder=3.0, transform=place, **_RING)


def _draw_frontier(ax: Axes, points: Floats) -> None:
    if len(points):
        line: dict[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (1, 1)), "zorder": 1.5}
        ax.plot(points[:, 0], points[:, 1], drawstyle="steps-post", **line)
        ax.plot([], [], label="beaten by none", drawstyle="steps-post", **line, **_RING)


def _vertical(ax: Axes, values: Floats, limits: tuple[float, float] | None) -> None:
    known = values[values == values]
    low, high = (known.min(), known.max()) if known.size else (0.0, 1.0)
    if limits is not None:
        low, high = max(low, limits[0]), min(high, limits[1])
    margin = 0.08 * ((high - low) or abs(high) * 0.1 or 1.0)
    ax.set_ylim(low - margin, high + margin)


def _tick_budgets(ax: Axes, places: Floats, points: float) -> None:
    """Sets ticks at the budgets if they are few and far apart; labels have three digits."""
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_units(value)))
    fractions = ax.transAxes.inverted().transform(ax.transData.transform([(x, 0) for x in places]))[:, 0]
    apart = min((b - a for a, b in pairwise(fractions)), default=1.0) * points
    if len(places) <= _MOST_BUDGETS and apart > text_width("0.00M") + 6:
        ax.set_xticks(places)
    elif ax.get_xscale() == "log":
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))


def in_units(count: float) -> str:
    """Returns a number of parameters in three digits: 884736 becomes 885k, 2359296 becomes 2.36M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"
