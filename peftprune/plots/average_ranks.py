"""The critical-difference diagram: many methods, ranked over many tasks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.plots.axes import name, write_beside
from peftprune.plots.labels import fit
from peftprune.plots.style import LINE_SPACING, PAGE_WIDTH, SMALLEST_TEXT, TICK_SIZE, axes_or_new, room
from peftprune.plots.validation import column, forbid, not_empty

_NAME_WIDTH = 1.6  # inches at either side
_GAP = 0.45  # between two names, in lines of text
_LINE: dict[str, Any] = {"color": "black", "clip_on": False}


def not_distinguished(average_ranks: ArrayLike, critical_difference: float) -> list[tuple[float, float]]:
    """Returns the largest groups of methods whose average ranks differ by at most the critical difference.

    Each group of two or more is (lowest, highest) average rank, ascending; none lies within another. Ranks that are NaN
    are left out. Raises UsageError where the critical difference is below 0.
    """
    if not critical_difference >= 0:
        cure = "Give at least 0, such as the result of peftprune.stats.critical_difference"
        raise UsageError.of("critical_difference", critical_difference, "is negative or missing", cure)
    ranks = np.asarray(average_ranks, dtype=float)
    ordered = sorted(float(rank) for rank in ranks[~np.isnan(ranks)])
    groups: list[tuple[float, float]] = []
    reached = -1
    for i, low in enumerate(ordered):
        # Rounding must not separate methods whose ranks differ by exactly the critical difference.
        last = max(j for j, high in enumerate(ordered) if high - low <= critical_difference + 1e-9)
        if last > i and last > reached:
            groups.append((low, ordered[last]))
        reached = max(reached, last)
    return groups


def average_rank_diagram(
    ax: Axes | None, labels: Sequence[str], average_ranks: ArrayLike, critical_difference: float, *, title: str = ""
) -> Axes:
    """Draws average ranks on a line, the best at the left; thick bars join methods that are not distinguished.

    The diagram of Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006), section 3.2.2.

    Args:
        labels: n methods.
        average_ranks: n average ranks over tasks, 1 … n (1 is best); NaN for a method without a rank, which is named
            below the diagram.
        critical_difference: two methods differ if their average ranks differ by more; drawn above the line.

    Raises:
        UsageError: there is no label, lengths differ, a rank is outside 1 … n, or the critical difference is negative.
    """
    not_empty("labels", labels)
    n = len(labels)
    ranks = column("average_ranks", average_ranks, n)
    wrong = (ranks < 1) | (ranks > n)
    forbid("average_ranks", ranks, wrong, f"is outside 1 … {n}", "Rank the methods on each task")
    levels = _levels(not_distinguished(ranks, critical_difference), gap=n / 40)
    order = [int(i) for i in np.argsort(ranks, kind="stable") if not np.isnan(ranks[i])]
    half = -(-len(order) // 2)
    # From the outside inwards, so that leader lines do not cross.
    sides = (order[:half], order[half:][::-1])
    unranked = ", ".join(str(label) for label, rank in zip(labels, ranks, strict=True) if np.isnan(rank))
    note = fit(f"not ranked: {unranked}", 5.5, 4) if unranked else ""

    # Vertical positions are lines of text, downwards from the line of ranks.
    above, first = 4.2, 1.0 + 0.7 * len(levels)
    for lines in (3, 2, 1):
        names = {i: fit(f"{labels[i]} ({ranks[i]:.2f})", _NAME_WIDTH, lines) for i in order}
        tall = [sum(names[i].count("\n") + 1 + _GAP for i in side) for side in sides]
        total = above + first + max(tall, default=0.0) + (note.count("\n") + 2 if note else 0.3)
        if ax is None or total * LINE_SPACING * TICK_SIZE <= room(ax)[1]:
            break
    drawn = axes_or_new(ax, (PAGE_WIDTH, total * LINE_SPACING * TICK_SIZE / 72 + 0.35))
    size = TICK_SIZE if ax is None else min(TICK_SIZE, max(SMALLEST_TEXT, room(ax)[1] / total / LINE_SPACING))
    drawn.set_xlim(1, max(n, 2))
    drawn.set_ylim(total - above, -above)
    drawn.set_axis_off()
    _draw_scale(drawn, n, critical_difference, size)
    for level, row in enumerate(levels):
        for low, high in row:
            # A bar of methods with equal ranks needs some length to be visible.
            if low == high:
                low, high = low - 0.01 * (n - 1), high + 0.01 * (n - 1)
            drawn.plot([low, high], [0.7 + 0.7 * level] * 2, color="black", linewidth=2.6, solid_capstyle="round")
    for side, edge, shift in ((sides[0], 1.0, -4.0), (sides[1], float(max(n, 2)), 4.0)):
        y = first
        for i in side:
            height = names[i].count("\n") + 1
            middle = y + height / 2
            # From the rank down, then outwards to the name.
            drawn.plot([ranks[i], ranks[i], edge], [0, middle, middle], linewidth=0.7, solid_joinstyle="miter", **_LINE)
            write_beside(drawn, names[i], middle, size, shift)
            y += height + _GAP
    if note:
        drawn.text(0.5, total - above, note, transform=drawn.get_yaxis_transform(), ha="center", va="bottom",
                   fontsize=size, parse_math=False)  # fmt: skip
    name(drawn, title)
    return drawn


def _levels(groups: Sequence[tuple[float, float]], gap: float) -> list[list[tuple[float, float]]]:
    """Returns the bars on as few levels as possible; bars of one level are more than `gap` ranks apart."""
    levels: list[list[tuple[float, float]]] = []
    for low, high in sorted(groups):
        for level in levels:
            if low - level[-1][1] > gap:
                level.append((low, high))
                break
        else:
            levels.append([(low, high)])
    return levels


def _draw_scale(ax: Axes, n: int, difference: float, size: float) -> None:
    """Draws the line of ranks with its numbers, and above it the critical difference at the same scale."""
    end = max(n, 2)
    thin = {"linewidth": 0.8, **_LINE}
    ax.plot([1, end], [0, 0], **thin)
    for rank in range(1, end + 1):
        ax.plot([rank, rank], [0, -0.4], **thin)
        ax.text(rank, -0.5, str(rank), ha="center", va="bottom", fontsize=size)
    stop = min(1 + difference, end)
    ax.plot([1, stop], [-2.4, -2.4], **thin)
    cut_off = difference > end - 1
    for x in [1.0] if cut_off else [1.0, stop]:
        ax.plot([x, x], [-2.1, -2.7], **thin)
    longer = " (longer than the line)" if cut_off else ""
    ax.text(1, -2.8, f"critical difference {difference:.2f}{longer}", ha="left", va="bottom", fontsize=size)
