import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.plots.axes import finish, write_beside
from peftprune.plots.labels import fit
from peftprune.plots.style import GREY, LINE_SPACING, PAGE_WIDTH, PALETTE, SMALLEST_TEXT, TICK_SIZE, axes_or_new, room
from peftprune.plots.validation import Floats, column, not_empty

_NAME_WIDTH, _OUTCOME_WIDTH = 1.5, 1.75  # inches
_WITHIN = ("D", PALETTE[2])
_MARKS = {"better": ("^", PALETTE[0]), "worse": ("v", PALETTE[1]), "equivalent": _WITHIN, "not worse": _WITHIN}
_OTHER = ("o", GREY)
_NONE_MADE = "not compared"


def forest(
    ax: Axes | None,
    labels: Sequence[str],
    differences: ArrayLike,
    lows: ArrayLike,
    highs: ArrayLike,
    *,
    detectable: ArrayLike | None = None,
    verdicts: Sequence[str] | None = None,
    margin: float | None = None,
    metric: str = "",
    baseline: str = "",
    title: str = "",
) -> Axes:
    """Draws each method's difference from the baseline with its interval, the first method at the top.

    Difference, interval and verdict are written at the right. Shading shows differences that the study is too small to
    find.

    Args:
        labels: n methods.
        differences: n differences method − baseline, in the metric; NaN where there was no comparison.
        lows, highs: n ends of the intervals; NaN where there is none.
        detectable: n smallest detectable differences, at least 0; NaN where unknown, infinite where there is none.
        verdicts: n verdicts; "better", "worse" and those within the margin have their own marks and colours.
        margin: half the width of a band around 0, of differences that do not matter; above 0.
        metric: name of the metric. baseline: label of the baseline.

    Raises:
        UsageError: there is no label, lengths differ, or the margin is not a number above 0.
    """
    not_empty("labels", labels)
    n = len(labels)
    d, low, high = column("differences", differences, n), column("lows", lows, n), column("highs", highs, n)
    limit = np.full(n, np.nan) if detectable is None else np.abs(column("detectable", detectable, n))
    words = [""] * n if verdicts is None else [str(verdict) for verdict in verdicts]
    if len(words) != n:
        raise UsageError.of("verdicts", len(words), "has another length than labels", f"Give {n}")
    if margin is not None and not 0 < margin < np.inf:
        raise UsageError.of("margin", margin, "is not a number above 0", "Give 0.01, for example")
    words = [_NONE_MADE if np.isnan(value) else word for value, word in zip(d, words, strict=True)]

    texts = [*(fit(label, _NAME_WIDTH) for label in labels), *("\n" + fit(word, _OUTCOME_WIDTH) for word in words)]
    most_lines = max(text.count("\n") for text in texts) + 1
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(1.6, n * (most_lines * LINE_SPACING + 0.8) * TICK_SIZE / 72 + 0.8)))
    # Rows of given axes may be lower than the text needs; about a quarter goes to the axis below.
    row = (0.95 if ax is None else 0.8) * room(drawn)[1] / n
    size = min(TICK_SIZE, max(SMALLEST_TEXT, row / LINE_SPACING))
    lines = max(1, int(row / (LINE_SPACING * size)))
    rows = np.arange(n)
    drawn.set_xlim(*_limits(d, low, high, limit, margin or 0.0))
    drawn.set_ylim(n - 0.5, -0.5)
    _shade(drawn, limit)
    if margin is not None:
        drawn.axvspan(-margin, margin, facecolor=PALETTE[2], alpha=0.12, linewidth=0, zorder=0.4)
        for edge in (-margin, margin):
            drawn.axvline(edge, color=PALETTE[2], linewidth=0.8, linestyle="--", zorder=1.1)
    drawn.axvline(0, color="black", linewidth=0.8, zorder=1.2)
    for i in rows[~np.isnan(d)]:
        marker, colour = next((mark for word, mark in _MARKS.items() if words[i].startswith(word)), _OTHER)
        drawn.plot([low[i], high[i]], [i, i], color=colour, linewidth=1.3, marker="|", markersize=4, zorder=2)
        drawn.plot([d[i]], [i], color=colour, marker=marker, markersize=5.5, linestyle="none", zorder=3)
    for i in rows:
        write_beside(drawn, _outcome(d[i], low[i], high[i], words[i], lines), float(i), size, 5.0)
    names = [fit(label, _NAME_WIDTH, min(3, lines), size) for label in labels]
    drawn.set_yticks(rows, names, parse_math=False)
    shaded = f"\ndashed: margin ±{margin:g}" if margin else ""
    shaded += "\nshaded: too small for this study to find" if (limit > 0).any() else ""
    against = f" to {baseline}" if baseline else ""
    xlabel = fit(f"difference in {metric or 'the metric'}{against}", 3.0, 3, 8.0) + shaded
    finish(drawn, title=title, xlabel=xlabel)
    drawn.tick_params(axis="y", length=0, labelsize=size)
    drawn.spines["left"].set_visible(False)
    drawn.locator_params(axis="x", nbins=5)
    return drawn


def _limits(d: Floats, low: Floats, high: Floats, limit: Floats, margin: float) -> tuple[float, float]:
    values = np.concatenate([d, low, high, [0.0, margin, -margin]])
    values = values[np.isfinite(values)]
    reach = max(float(values.max() - values.min()), 1e-9)
    bands = limit[np.isfinite(limit)]
    # A band far wider than all intervals would compress them, so it is cut off at the axes.
    band = min(float(bands.max()), max(reach, 2 * float(np.abs(values).max()))) if bands.size else 0.0
    left, right = min(float(values.min()), -band), max(float(values.max()), band)
    rim = 0.06 * (right - left) or 1.0
    return left - rim, right + rim


def _shade(ax: Axes, limit: Floats) -> None:
    left, right = ax.get_xlim()
    for i in (limit > 0).nonzero()[0]:
        low, high = (-limit[i], limit[i]) if np.isfinite(limit[i]) else (left, right)
        ax.add_patch(Rectangle((low, i - 0.4), high - low, 0.8, facecolor=GREY, alpha=0.2, linewidth=0, zorder=0.5))


def _outcome(difference: float, low: float, high: float, verdict: str, lines: int) -> str:
    """Returns numbers and verdict in at most `lines` lines; the numbers are left out first, since they are drawn."""
    if math.isnan(difference):
        return verdict
    largest = max((abs(v) for v in (difference, low, high) if math.isfinite(v)), default=0.0)
    # Three significant digits of the largest value.
    digits = min(6, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 2
    numbers = f"{difference:+.{digits}f}"
    if math.isfinite(low) and math.isfinite(high):
        numbers += f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    numbers = numbers.replace("-", "−")
    if not verdict:
        return numbers
    if lines < 2:
        return fit(verdict, _OUTCOME_WIDTH, 1)
    return f"{numbers}\n{fit(verdict, _OUTCOME_WIDTH, lines - 1)}"
