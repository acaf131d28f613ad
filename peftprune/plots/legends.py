"""Legends and colour bars beside or below the axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axes import Axes as AxesClass
from matplotlib.colorbar import Colorbar
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from peftprune.plots.labels import fit
from peftprune.plots.style import LABEL_SIZE, LINE_SPACING, TICK_SIZE, room

TEXT_WIDTH = 1.35  # inches for the names
WIDTH = TEXT_WIDTH + 0.45  # inches with the marks


def legend_beside(
    ax: Axes, handles: Sequence[Any] | None = None, labels: Sequence[str] | None = None, *, title: str = ""
) -> Legend:
    """Adds a legend with wrapped names to the right of the axes, of the labelled artists unless handles are given."""
    if handles is None or labels is None:
        found = named(ax)
        handles, labels = [handle for handle, _ in found], [label for _, label in found]
    legend = ax.legend(
        list(handles),
        ["name"] * len(handles),
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
        borderpad=0.2,
        labelspacing=0.35,
        handlelength=2.8,
        frameon=False,
        fontsize=TICK_SIZE,
        title=title or None,
        title_fontsize=TICK_SIZE,
        alignment="left",
    )
    # Given axes may be too low for all lines of the names. The final layout is about a fifth higher.
    high = 1.2 * room(ax)[1] / 72
    lines = next((n for n in (3, 2) if legend_height(labels, title.count("\n") + 1, n) <= high), 1)
    name_entries(legend, [fit(label, TEXT_WIDTH, lines) for label in labels])
    return legend


def named(ax: Axes) -> list[tuple[Any, str]]:
    """Returns (artist, name) of the named lines and bars, including names that start with an underscore."""
    artists: list[Any] = [*ax.lines, *ax.containers]
    labelled = [(artist, str(artist.get_label())) for artist in artists]
    return [entry for entry in labelled if not re.fullmatch(r"_(child|container)\d*|_nolegend_|", entry[1])]


def name_entries(legend: Legend, labels: Sequence[str]) -> None:
    """Writes the names literally; matplotlib would skip a leading underscore and parse dollars as a formula."""
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)


def legend_height(labels: Sequence[str], extra_lines: int = 0, most: int = 3) -> float:
    """Returns the inches that a legend takes with these names, each of at most `most` lines."""
    lines = sum(fit(label, TEXT_WIDTH, most).count("\n") + 1.35 for label in labels) + extra_lines
    return lines * LINE_SPACING * TICK_SIZE / 72


def colour_bar(axes: Axes | Sequence[Axes], label: str, *, integer: bool = False) -> Colorbar:
    """Adds a colour bar to the right of axes with heat maps of one colour range; whole numbers if `integer`."""
    drawn = [axes] if isinstance(axes, AxesClass) else list(axes)
    figure = drawn[0].get_figure()
    assert figure is not None
    bar = figure.colorbar(drawn[0].collections[0], ax=drawn, aspect=25, pad=0.015, fraction=0.05)
    bar.set_label(label, fontsize=LABEL_SIZE)
    bar.ax.tick_params(labelsize=TICK_SIZE, length=2)
    # Low axes have space for few numbers.
    most = min(9, max(2, int(room(drawn[0])[1] / (2 * TICK_SIZE))))
    bar.locator = MaxNLocator(most, integer=integer)
    bar.update_ticks()
    return bar
