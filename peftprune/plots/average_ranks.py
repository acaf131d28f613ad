"""Average ranks of many methods over many tasks, with their critical difference."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.plots.axes import finish, write_beside
from peftprune.plots.labels import fit
from peftprune.plots.style import GREY, LINE_SPACING, PAGE_WIDTH, PALETTE, SMALLEST_TEXT, TICK_SIZE, axes_or_new, room
from peftprune.plots.validation import column, forbid, not_empty

_NAME_WIDTH = 1.6  # inches


def average_rank_diagram(
    ax: Axes | None, labels: Sequence[str], average_ranks: ArrayLike, critical_difference: float, *, title: str = ""
) -> Axes:
    """Draws average ranks, the best at the top, each in an interval as wide as the critical difference.

    Two methods are not distinguished where their intervals overlap; shading marks those that overlap the best one's.
    The diagram of Koning et al., The M3 competition: statistical tests of the results, International Journal of
    Forecasting 21 (2005).

    Args:
        labels: n methods.
        average_ranks: n average ranks over tasks, 1 … n (1 is best); NaN for a method without a rank.
        critical_difference: two methods differ if their average ranks differ by more.

    Raises:
        UsageError: there is no label, lengths differ, a rank is outside 1 … n, or the critical difference is negative.
    """
    not_empty("labels", labels)
    n = len(labels)
    ranks = column("average_ranks", average_ranks, n)
    forbid("average_ranks", ranks, (ranks < 1) | (ranks > n), f"is outside 1 … {n}", "Rank the methods on each task")
    if not critical_difference >= 0:
        cure = "Give at least 0, such as the result of peftprune.stats.critical_difference"
        raise UsageError.of("critical_difference", critical_difference, "is negative or missing", cure)
    most_lines = max(fit(label, _NAME_WIDTH).count("\n") + 1 for label in labels)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(1.4, n * (most_lines * LINE_SPACING + 0.8) * TICK_SIZE / 72 + 0.7)))
    row = (0.95 if ax is None else 0.75) * room(drawn)[1] / n
    size = min(TICK_SIZE, max(SMALLEST_TEXT, row / LINE_SPACING))
    order, rows, half = np.argsort(ranks, kind="stable"), np.arange(n), critical_difference / 2
    placed = ranks[order]
    drawn.axvspan(placed[0] - half, placed[0] + half, facecolor=GREY, alpha=0.2, linewidth=0)
    drawn.errorbar(placed, rows, xerr=half, fmt="o", color=PALETTE[0], markersize=4, linewidth=1.2, capsize=2)
    for i, rank in enumerate(placed):
        write_beside(drawn, "not ranked" if np.isnan(rank) else f"{rank:.2f}", float(i), size, 5.0)
    drawn.set_ylim(n - 0.5, -0.5)
    lines = max(1, min(3, int(row / (LINE_SPACING * size))))
    drawn.set_yticks(rows, [fit(labels[i], _NAME_WIDTH, lines, size) for i in order], parse_math=False)
    xlabel = f"average rank (1 is best), critical difference {critical_difference:.2f}; not distinguished: overlapping"
    finish(drawn, title=title, xlabel=xlabel)
    drawn.tick_params(axis="y", length=0, labelsize=size)
    return drawn
