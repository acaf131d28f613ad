"""Titles and axis labels."""

from __future__ import annotations

from matplotlib.axes import Axes

from peftprune.plots.labels import within
from peftprune.plots.style import LABEL_SIZE, TICK_SIZE, TITLE_SIZE, room


def finish(ax: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Applies the common style: small type, short ticks, no frame at the top and right; empty texts change nothing."""
    ax.tick_params(labelsize=TICK_SIZE, length=2, pad=2)
    ax.spines[["top", "right"]].set_visible(False)
    if xlabel:
        ax.set_xlabel(within(xlabel, room(ax)[0], LABEL_SIZE), fontsize=LABEL_SIZE, parse_math=False)
    if ylabel:
        ax.set_ylabel(within(ylabel, room(ax)[1], LABEL_SIZE), fontsize=LABEL_SIZE, parse_math=False)
    name(ax, title)


def name(ax: Axes, title: str) -> None:
    """Sets the title, wrapped to the width of the axes; an empty one changes nothing."""
    if title:
        # Names may contain a dollar sign, which does not mark a formula.
        ax.set_title(within(title, room(ax)[0], TITLE_SIZE), fontsize=TITLE_SIZE, parse_math=False)
