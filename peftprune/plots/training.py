"""Ranks over the steps of training, which stay as they are between events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftprune.plots.axes import finish
from peftprune.plots.bands import Phase, as_steps, name_phases, shade_phases
from peftprune.plots.labels import short_kinds
from peftprune.plots.legends import legend_beside, legend_height
from peftprune.plots.overlapping_lines import LEGEND, draw_in_turns
from peftprune.plots.style import PAGE_WIDTH, axes_or_new
from peftprune.plots.validation import grid, largest, not_empty

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from peftprune.plots.validation import Floats


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
    """Draw the rank of each group of sites over the steps of training, constant from one event to the next.

    Where groups have equal values, their lines and marks take turns, so that all of them show.

    Args:
        ax: where to draw; None makes a figure of its own.
        steps: n optimizer steps, rising, from which on the values hold.
        values: n × groups, totals or means of the ranks, at least 0; NaN where unknown.
        labels: one per group, such as kinds of layer.
        total_steps: end of the run; None ends at the last of `steps`.
        phases: (name, start, stop) in steps; shaded, with names above.
        ylabel: what the values are.
        legend: name the groups at the right.

    Raises:
        UsageError: there is no step or label, steps do not rise, the end lies before the last, a phase ends before it
            starts, or the shape is not steps × labels.
    """
    import numpy as np

    at, end = as_steps(steps, total_steps)
    known = _steps_by("values", values, at, labels)
    names = short_kinds(labels)
    drawn = axes_or_new(ax, (PAGE_WIDTH, max(2.8, legend_height(names, 2) + (1.6 if phases else 0.7))))
    # The last value holds to the end of the run.
    if end > at[-1]:
        at, known = np.append(at, end), np.vstack([known, known[-1:]])
    draw_in_turns(drawn, at, known, names, held=True)
    top = largest(known) or 1.0
    drawn.set_ylim(-0.06 * top, 1.08 * top)
    _limit(drawn, at[0], end, 0.02)
    finish(drawn, title=title, xlabel="optimizer step", ylabel=ylabel)
    if legend:
        legend_beside(drawn, title=LEGEND if len(names) > 1 else "")
    shade_phases(drawn, phases)
    name_phases(drawn, phases, at[0], end, share=0.7 if legend else 0.9)
    return drawn


def _steps_by(field: str, values: ArrayLike, at: Floats, labels: Sequence[str]) -> Floats:
    not_empty("labels", labels)
    return grid(field, values, ("steps", len(at)), ("labels", len(labels)))


def _limit(ax: Axes, low: float, high: float, margin: float) -> None:
    """Ends of the axis of steps, also for a run of no length."""
    length = (high - low) or 1.0
    ax.set_xlim(low - margin * length, low + length * (1 + margin))
