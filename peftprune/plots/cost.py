from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.plots.axes import finish
from peftprune.plots.labels import fit, text_width
from peftprune.plots.legends import legend_beside, legend_height
from peftprune.plots.style import HATCHES, LINE_SPACING, PAGE_WIDTH, PALETTE, TICK_SIZE, axes_or_new, contrasting, room
from peftprune.plots.validation import column, not_empty

_NAME_WIDTH = 1.6  # inches
_NO_RESULT = "no result"


def cost_by_phase(
    ax: Axes | None,
    labels: Sequence[str],
    phases: Mapping[str, ArrayLike],
    *,
    unit: str,
    title: str = "",
    legend: bool = True,
) -> Axes:
    """Draws the cost of each phase as stacked bars, one per method, the first at the top, with totals at the end.

    Args:
        labels: n methods.
        phases: name to n costs, at least 0, in stacking order; NaN where a method has no such phase. A method with NaN
            in all phases is marked as without result.
        unit: of the costs, such as "seconds" or "PFLOP".

    Raises:
        UsageError: there is no label or phase, lengths differ, or a cost is negative.
    """
    not_empty("labels", labels)
    not_empty("phases", phases)
    n = len(labels)
    costs = {str(name): column(f"phases[{name!r}]", values, n) for name, values in phases.items()}
    for name, values in costs.items():
        if (values < 0).any():
            raise UsageError.of(f"phases[{name!r}]", float(values.min()), "is negative", "Give costs of at least 0")

    lines = max(fit(label, _NAME_WIDTH).count("\n") + 1 for label in labels)
    height = max(n * (lines * LINE_SPACING + 0.8) * TICK_SIZE / 72 + 0.6, legend_height(list(costs)) + 0.4, 1.4)
    drawn = axes_or_new(ax, (PAGE_WIDTH, height))
    row = (0.95 if ax is None else 0.8) * room(drawn)[1] / n
    rows, left = np.arange(n), np.zeros(n)
    for i, (name, values) in enumerate(costs.items()):
        face = PALETTE[i % (len(PALETTE) - 1)]
        shown = np.nan_to_num(values)
        # The hatching takes the colour of the edge.
        # Colours repeat after six phases and hatches after five; only the first phase is plain.
        hatch = HATCHES[(i - 1) % len(HATCHES)] if i else ""
        look: dict[str, Any] = {"color": face, "edgecolor": contrasting(face), "linewidth": 0.4, "hatch": hatch}
        drawn.barh(rows, shown, 0.7, left=left, label=name, **look)
        left = left + shown
    known = [any(values[i] == values[i] for values in costs.values()) for i in rows]
    texts = [_number(total) if found else _NO_RESULT for total, found in zip(left, known, strict=True)]
    longest = left.max() or 1.0
    # Space for the totals: a share of the axes about as wide as the widest of them.
    points = 0.55 * room(drawn)[0]
    taken = min(0.5, (text_width("\n".join(texts)) + 6) / points)
    drawn.set_xlim(0, longest / (1 - taken))
    drawn.set_ylim(n - 0.5, -0.5)
    for i, text in enumerate(texts):
        drawn.annotate(text, (left[i], i), xytext=(3, 0), textcoords="offset points", va="center", fontsize=TICK_SIZE)
    fitting = max(1, min(3, int(row / (LINE_SPACING * TICK_SIZE))))
    drawn.set_yticks(rows, [fit(label, _NAME_WIDTH, fitting) for label in labels], parse_math=False)
    finish(drawn, title=title, xlabel=unit)
    drawn.locator_params(axis="x", nbins=5)
    if legend:
        legend_beside(drawn)
    return drawn


def _number(value: float) -> str:
    """Returns three significant digits, without an exponent for numbers that are short enough."""
    return f"{value:.3g}" if value < 1000 or value >= 1e7 else f"{value:,.0f}".replace(",", " ")
