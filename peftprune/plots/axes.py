"""Axes: several in one figure, with titles, labels, and text beside them."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftprune.errors import UsageError
from peftprune.plots.labels import fit, within
from peftprune.plots.style import LABEL_SIZE, LINE_SPACING, MAX_WIDTH, TICK_SIZE, TITLE_SIZE, new_figure, room
from peftprune.plots.validation import not_empty


def facets(titles: Sequence[str], *, width: float = 3.2, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """Makes a figure, at most 10 inches wide, with one axes per title in reading order, evenly distributed over rows.

    Titles are wrapped to the width. `width` and `height` are inches for each axes with its labels. Raises UsageError
    where there is no title, or a size is not above 0.
    """
    not_empty("titles", titles)
    for field, value in (("width", width), ("height", height)):
        if not value > 0:
            raise UsageError.of(field, value, "is not above 0", "Give inches, such as 3.2")
    columns = even_columns(len(titles), width, margin=0.0)
    rows = -(-len(titles) // columns)
    # Titles are centred on their axes, and a legend beside the axes moves them to the left.
    wrapped = [fit(title, 0.7 * width, size=TITLE_SIZE) for title in titles]
    title_height = max(text.count("\n") + 1 for text in wrapped) * LINE_SPACING * TITLE_SIZE / 72
    figure = new_figure((min(columns * width, MAX_WIDTH), rows * (height + title_height)))
    axes = panels(figure, len(titles), columns)
    for ax, text in zip(axes, wrapped, strict=True):
        ax.set_title(text, fontsize=TITLE_SIZE, parse_math=False)
    return figure, axes


def panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """Adds `count` transparent axes to a figure, in rows of `columns`."""
    rows = -(-count // columns)
    axes = list(figure.subplots(rows, columns, squeeze=False, subplot_kw={"facecolor": "none"}).ravel())
    for ax in axes[count:]:
        ax.remove()
    return axes[:count]


def even_columns(count: int, width: float, margin: float = 1.0) -> int:
    """Returns how many panels of `width` inches go side by side: as many as fit, evenly distributed over the rows."""
    most = max(1, int((MAX_WIDTH - margin) / width + 1e-9))
    rows = -(-count // min(most, 5))
    return -(-count // rows)


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


def write_beside(ax: Axes, text: str, y: float, size: float, shift: float) -> None:
    """Writes text at height `y`, `shift` points to the right of the axes; to the left where it is negative."""
    edge, align = (1.0, "left") if shift > 0 else (0.0, "right")
    look: dict[str, Any] = {"va": "center", "fontsize": size, "annotation_clip": False, "parse_math": False}
    ax.annotate(text, (edge, y), (shift, 0), ax.get_yaxis_transform(), "offset points", ha=align, **look)
