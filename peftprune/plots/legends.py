"""Legends and colour bars beside or below the axes."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from peftprune.plots.labels import fit, text_width
from peftprune.plots.style import LABEL_SIZE, LINE_SPACING, TICK_SIZE, room

_TEXT_WIDTH = 1.35  # inches for the names
WIDTH = _TEXT_WIDTH + 0.45  # inches with the marks


def legend_beside(ax: Axes, entries: Sequence[tuple[Any, str]] | None = None, *, title: str = "") -> Legend:
    """Adds a legend of (artist, name), or of all named artists, with wrapped names to the right of the axes."""
    entries = _named(ax) if entries is None else entries
    labels = [label for _, label in entries]
    # Given axes may be too low for all lines of the names. The final layout is about a fifth higher.
    high = 1.2 * room(ax)[1] / 72
    lines = next((n for n in (3, 2) if legend_height(labels, title.count("\n") + 1, n) <= high), 1)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0, "borderpad": 0.2}
    shown = [fit(label, _TEXT_WIDTH, lines) for label in labels]
    return _legend(ax, (artist for artist, _ in entries), shown, title, labelspacing=0.35, alignment="left", **place)


def common_legend(figure: Figure, axes: Sequence[Axes], *, note: str = "") -> Legend | None:
    """Adds one legend below all axes with every name in any of them; returns None if there is no name.

    Draw on the axes with `legend=False` before. `note` is text above the legend, wrapped to the figure, such as the
    missing methods.
    """
    found: dict[str, Any] = {}
    for ax in axes:
        for artist, label in _named(ax):
            found.setdefault(label, artist)
    if not found:
        return None
    labels = [fit(label, 2 * _TEXT_WIDTH, lines=2) for label in found]
    entry = text_width("\n".join(labels)) / 72 + 0.55
    columns = max(1, min(len(labels), int(figure.get_figwidth() / entry)))
    rows = -(-len(labels) // columns)
    above = fit(note, figure.get_figwidth(), size=TICK_SIZE) if note else ""
    lines = rows * (max(label.count("\n") for label in labels) + 1.4) + (above.count("\n") + 1.4) * bool(above)
    figure.set_figheight(figure.get_figheight() + lines * LINE_SPACING * TICK_SIZE / 72 + 0.1)
    return _legend(figure, found.values(), labels, above, loc="outside lower center", ncols=columns)


def _legend(place: Axes | Figure, artists: Iterable[Any], labels: Sequence[str], title: str, **options: Any) -> Legend:
    sizes: dict[str, Any] = {"fontsize": TICK_SIZE, "title_fontsize": TICK_SIZE, "handlelength": 2.8}
    legend = place.legend(list(artists), ["name"] * len(labels), title=title or None, frameon=False, **sizes, **options)
    legend.get_title().set_parse_math(False)
    # Written literally: matplotlib would skip a leading underscore and parse dollars as a formula.
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
    return legend


def _named(ax: Axes) -> list[tuple[Any, str]]:
    """Returns (artist, name) of the named lines and bars, including names that start with an underscore."""
    artists: list[Any] = [*ax.lines, *ax.containers]
    labelled = [(artist, str(artist.get_label())) for artist in artists]
    return [entry for entry in labelled if not re.fullmatch(r"_(child|container)\d*|_nolegend_|", entry[1])]


def legend_height(labels: Sequence[str], extra_lines: int = 0, most: int = 3) -> float:
    """Returns the inches that a legend takes with these names, each of at most `most` lines."""
    lines = sum(fit(label, _TEXT_WIDTH, most).count("\n") + 1.35 for label in labels) + extra_lines
    return lines * LINE_SPACING * TICK_SIZE / 72


def colour_bar(axes: Axes | Sequence[Axes], label: str, *, integer: bool = False) -> Colorbar:
    """Adds a colour bar to the right of axes with heat maps of one colour range; whole numbers if `integer`."""
    drawn = [axes] if isinstance(axes, Axes) else list(axes)
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
