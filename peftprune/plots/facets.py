"""Several axes side by side in one figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from peftprune.errors import UsageError
from peftprune.plots.labels import fit, text_width
from peftprune.plots.legends import TEXT_WIDTH, name_entries, named
from peftprune.plots.style import LINE_SPACING, MAX_WIDTH, TICK_SIZE, TITLE_SIZE, new_figure
from peftprune.plots.validation import not_empty


def facets(titles: Sequence[str], *, width: float = 3.2, height: float = 2.4) -> tuple[Figure, list[Axes]]:
    """Makes a figure, at most 10 inches wide, with one axes per title in reading order, evenly distributed over rows.

    Titles are wrapped to the width. `width` and `height` are inches for each axes with its labels. Raises UsageError
    where there is no title, or a size is not above 0.
    """
    not_empty("titles", titles)
    for name, value in (("width", width), ("height", height)):
        if not value > 0:
            raise UsageError.of(name, value, "is not above 0", "Give inches, such as 3.2")
    columns = even_columns(len(titles), width, margin=0.0)
    rows = -(-len(titles) // columns)
    # Titles are centred on their axes, and a legend beside the axes moves them to the left.
    wrapped = [fit(title, 0.7 * width, size=TITLE_SIZE) for title in titles]
    title_height = max(text.count("\n") + 1 for text in wrapped) * LINE_SPACING * TITLE_SIZE / 72
    figure = new_figure((min(columns * width, MAX_WIDTH), rows * (height + title_height)))
    axes = list(figure.subplots(rows, columns, squeeze=False, subplot_kw={"facecolor": "none"}).ravel())
    for ax in axes[len(titles) :]:
        ax.remove()
    for ax, text in zip(axes, wrapped, strict=False):
        ax.set_title(text, fontsize=TITLE_SIZE, parse_math=False)
    return figure, axes[: len(titles)]


def common_legend(figure: Figure, axes: Sequence[Axes], *, note: str = "") -> Legend | None:
    """Adds one legend below all axes with every name in any of them; returns None if there is no name.

    Draw on the axes with `legend=False` before. `note` is text above the legend, wrapped to the figure, such as the
    missing methods.
    """
    found: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in named(ax):
            found.setdefault(label, handle)
    if not found:
        return None
    labels = [fit(label, 2 * TEXT_WIDTH, lines=2) for label in found]
    entry = text_width("\n".join(labels)) / 72 + 0.55
    columns = max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    rows = -(-len(labels) // columns)
    above = fit(note, figure.get_figwidth(), size=TICK_SIZE) if note else ""
    lines = rows * (max(label.count("\n") for label in labels) + 1.4) + (above.count("\n") + 1.4) * bool(above)
    figure.set_figheight(figure.get_figheight() + lines * LINE_SPACING * TICK_SIZE / 72 + 0.1)
    legend = figure.legend(
        list(found.values()),
        ["name"] * len(labels),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=TICK_SIZE,
        handlelength=2.8,
        title=above or None,
        title_fontsize=TICK_SIZE,
    )
    legend.get_title().set_parse_math(False)
    name_entries(legend, labels)
    return legend


def even_columns(panels: int, width: float, margin: float = 1.0) -> int:
    """Returns how many panels of `width` inches go side by side: as many as fit, evenly distributed over the rows."""
    most = max(1, int((MAX_WIDTH - margin) / width + 1e-9))
    rows = -(-panels // min(most, 5))
    return -(-panels // rows)
