"""Ranks over the steps of training, constant between events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from peftprune.plots.axes import finish
from peftprune.plots.bands import Phase, as_steps, name_phases, shade_phases
from peftprune.plots.labels import short_kinds
from peftprune.plots.legends import legend_beside, legend_height
from peftprune.plots.overlapping_lines import LEGEND, draw_alternating
from peftprune.plots.style import PAGE_WIDTH, axes_or_new
from peftprune.plots.validation import grid, largest, not_empty


def rank_over_training(
    ax: Axes | None,
    steps: ArrayLike,
    values: ArrayLike,
    labels: Sequence[str],
    *,
    total_steps: float | None = None,
    phases: Sequence[Phase] = (),
    title: str = "",
    ylabel: str = "rank in total",
    legend: bool = True,
) -> Axes:
    """Draws the rank of each group of sites over the steps of training, constant from one event to the next.

    Where groups have equal values, their lines and marks alternate, so that all of them show.

    Args:
        steps: n optimizer steps, increasing, from which on the values hold.
        values: n × groups, totals or means of the ranks, at least 0; NaN where unknown.
        labels: one per group, such as kinds of layer.
        total_steps: end of the run; None ends at the last of `steps`.
        phases: (name, start, stop) in steps; shaded, with names above.

    Raises:
        UsageError: there is no step or label, steps do not increase, the end lies before the last step, a phase ends
            before it starts, or the shape is not steps × labels.
    """
    at, end = as_steps(steps, total_steps)
    not_empty("labels", labels)
    known = grid("values", values, ("steps", len(at)), ("labels", len(labels)))
    names = short_kinds(labels)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.8, legend_height(names, 2) + (1.6 if phases else 0.7))))
    # The last value holds to the end of the run.
    if end > at[-1]:
        at, known = np.append(at, end), np.vstack([known, known[-1:]])
    draw_alternating(drawn, at, known, names, held=True)
    top = largest(known) or 1.0
    drawn.set_ylim(-0.06 * top, 1.08 * top)
    length = (end - at[0]) or 1.0
    drawn.set_xlim(at[0] - 0.02 * length, at[0] + 1.02 * length)
    finish(drawn, title=title, xlabel="optimizer step", ylabel=ylabel)
    if legend:
        legend_beside(drawn, title=LEGEND if len(names) > 1 else "")
    shade_phases(drawn, phases)
    name_phases(drawn, phases, at[0], end, share=0.7 if legend else 0.9)
    return drawn
