"""Sizes, colours and marks of all plots, and figures without pyplot.

A report with a dark page replaces pure black ink and a pure white background by the page's colours. Ink on a coloured
cell must stay, so `DARK_INK` and `LIGHT_INK` are not quite black and not quite white.
"""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

# Sizes in inches (one page column is about 6.5 wide) and points.
PAGE_WIDTH, MAX_WIDTH, MAX_HEIGHT = 6.5, 10.0, 9.0
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 8.0, 8.0, 6.5
SMALLEST_TEXT = 5.0
LINE_SPACING = 1.2  # distance of two lines of text, in units of their size

# Grey is visible on light and dark pages.
GREY = "#808080"
DARK_INK, LIGHT_INK = "#010101", "#fefefe"

# Okabe and Ito (2008), without the yellow, which is too pale for a line on white. Black follows the page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h", "d")
_ON_OFF = ((), (4.0, 1.5), (1.2, 1.2), (6.0, 1.5, 1.2, 1.5), (6.0, 1.2, 1.2, 1.2, 1.2, 1.2))
# Without an empty hatch, 35 neighbours differ in colour and hatch.
HATCHES = ("////", "----", "\\\\\\\\", "xxxx", "||||")


def series_style(index: int) -> dict[str, Any]:
    """Returns the style of the series at `index`; colours, marks and dashes together repeat after 7 · 13 · 5 = 455."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": (0, _ON_OFF[index % len(_ON_OFF)]) if index % len(_ON_OFF) else "-",
        "dash_capstyle": "butt",
        "linewidth": 1.3,
        "markersize": 4.8,
        "markeredgewidth": 0.0,
        "zorder": 2.0 + index / 1000,
    }


def new_figure(size: tuple[float, float]) -> Figure:
    """Makes a figure of `size` (width, height) in inches with its own canvas, without pyplot."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Returns the given axes, or those of a new figure with a transparent background."""
    if ax is not None:
        return ax
    return new_figure((min(size[0], MAX_WIDTH), min(size[1], MAX_HEIGHT))).add_subplot(facecolor="none")


def room(ax: Axes) -> tuple[float, float]:
    """Returns (width, height) of the axes in points: exact after the layout, an estimate before."""
    box = ax.get_window_extent()
    points = 72.0 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    return box.width * points, box.height * points


def arrange(ax: Axes) -> None:
    """Computes the layout now, so that `room` is exact. Slow in a figure of many axes."""
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]


def contrasting(colour: Any) -> str:
    """Returns `DARK_INK` or `LIGHT_INK`, whichever has more contrast with the colour as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    # Above the geometric mean of 0.05 and 1.05, black has more contrast than white.
    return DARK_INK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else LIGHT_INK
