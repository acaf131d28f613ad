"""Agreement of selections between seeds or methods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from peftprune.plots.axes import name
from peftprune.plots.cells import colour_cells, hatch_cells, ink_on, where, write_in_cells
from peftprune.plots.labels import every, fit
from peftprune.plots.style import GREY, LINE_SPACING, TICK_SIZE, arrange, axes_or_new, room
from peftprune.plots.validation import grid, in_unit_interval, not_empty

_LONGEST_BELOW = 6  # characters that fit under a column; longer labels are numbered
_LABEL_WIDTH = 1.7  # inches


def overlap_matrix(
    ax: Axes | None, values: ArrayLike, labels: Sequence[object], *, title: str = "", cmap: str = "cividis"
) -> Axes:
    """Draws pairwise overlaps as a square matrix: the first label at the top and at the left.

    Long labels are numbered at the left, and columns show the numbers. Undefined overlaps are hatched in grey.

    Args:
        values: n × n, 0 … 1; NaN where an overlap is undefined, such as that of two empty selections.
        labels: n, of both rows and columns.
        cmap: a matplotlib colour map; its ends are 0 and 1.

    Raises:
        UsageError: there is no label, the shape is not n × n, or a value is outside 0 … 1.
    """
    not_empty("labels", labels)
    n = len(labels)
    shares = grid("values", values, ("labels", n), ("labels", n))
    in_unit_interval("values", shares)
    names = [str(label) for label in labels]
    long = max(map(len, names)) > _LONGEST_BELOW
    if long:
        names = [f"{i}  {label}" for i, label in enumerate(names, 1)]
    pitch = _pitch(names, long)
    drawn = axes_or_new(ax, (max(pitch * n, 1.0) + (_LABEL_WIDTH + 0.3 if long else 0.6), max(pitch * n, 1.0) + 0.6))
    drawn.set_aspect("equal")
    mesh = colour_cells(drawn, shares, 0.0, 1.0, cmap)
    drawn.set(xlim=(0, n), ylim=(n, 0))
    side = min(room(drawn))
    # Given axes may be too low for three lines.
    lines = 3 if ax is None else max(1, min(3, int(side / n / (LINE_SPACING * TICK_SIZE))))
    step = every(n, side)
    middles = np.arange(0, n, step) + 0.5
    beside = [fit(label, _LABEL_WIDTH, lines) for label in names[::step]]
    below = [str(i + 1) for i in range(0, n, step)] if long else names[::step]
    drawn.set_yticks(middles, beside, fontsize=TICK_SIZE, parse_math=False)
    drawn.set_xticks(middles, below, fontsize=TICK_SIZE, parse_math=False)
    if not long and max(map(len, names)) * 0.64 * TICK_SIZE > side / n:
        drawn.tick_params(axis="x", labelrotation=90)
    drawn.tick_params(length=2, pad=2)
    name(drawn, title)
    hatch_cells(drawn, where(np.isnan(shares)), "xxxx", GREY)
    if ax is None:
        arrange(drawn)
    known = {cell: f"{shares[cell]:.2f}" for cell in where(~np.isnan(shares))}
    write_in_cells(drawn, known, (n, n), lambda i, j: ink_on(mesh, shares[i, j]))
    return drawn


def _pitch(names: Sequence[str], long: bool) -> float:
    """Returns the inches of each row: its label's lines, and space for a number."""
    lines = max(fit(name, _LABEL_WIDTH).count("\n") + 1 for name in names) if long else 1
    return max(0.3, (lines * LINE_SPACING + 0.4) * TICK_SIZE / 72)
