"""Which sites have their own factors, which share them, and which were dropped."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from peftprune.errors import UsageError
from peftprune.plots.cells import (
    CLEAR,
    as_grid,
    hatch_cells,
    label_grid,
    panel_size,
    where,
    with_labels,
    write_in_cells,
)
from peftprune.plots.legends import WIDTH, legend_beside
from peftprune.plots.style import DARK_INK, GREY, HATCHES, LIGHT_INK, PALETTE, arrange, axes_or_new, contrasting
from peftprune.plots.validation import Floats

_COLOURS = PALETTE[:-1]  # black would hide the hatching
_OWN = "#c8c8c8"
_MOST_LISTED = 10


def sharing_map(
    ax: Axes | None,
    groups: ArrayLike,
    layer_labels: Sequence[object],
    kind_labels: Sequence[str],
    *,
    ranks: ArrayLike | None = None,
    title: str = "",
    legend: bool = True,
) -> Axes:
    """Draws which sites share factors: layers upwards (the first at the bottom), kinds of layer to the right.

    Groups have letters A, B, … in the order of their ids. Where cells are too small for letters, groups are hatched,
    and at most 30 can be distinguished.

    Args:
        groups: layers × kinds, whole numbers: 0 for a separate adapter, k > 0 for sharing group k, −1 for a dropped
            site (rank 0); NaN or masked where there is no site, which leaves the cell empty.
        layer_labels: one per row. kind_labels: one per column.
        ranks: layers × kinds, written after the group's letter, if given.

    Raises:
        UsageError: the shapes do not match, there is no layer or kind, or a group is not a whole number from −1.
    """
    ids = as_grid("groups", groups, layer_labels, kind_labels)
    known = ids[~np.isnan(ids)]
    wrong = known[(known < -1) | (known != np.round(known))]
    if wrong.size:
        cure = "Give 0 for own, k > 0 for a group, -1 for dropped"
        raise UsageError.of("groups", float(wrong[0]), "is not a whole number from -1", cure)
    numbers = None if ranks is None else as_grid("ranks", ranks, layer_labels, kind_labels)
    order = {int(group): i for i, group in enumerate(np.unique(known[known > 0]))}

    width, height = panel_size(*ids.shape)
    if numbers is not None:
        width = min(max(width, 0.32 * ids.shape[1]), 5.0)
    height = min(max(height, 0.15 * len(ids)), 7.0)  # high enough for letters in 48 layers
    drawn = axes_or_new(ax, with_labels((width, height), kind_labels, WIDTH if legend else 0.0))
    _colour(drawn, ids, order)
    label_grid(drawn, layer_labels, kind_labels, title=title)
    key = _explain(drawn, ids, order) if legend else None
    if ax is None:
        arrange(drawn)
    texts = _texts(ids, order, numbers)
    # Without colour only letters distinguish groups, not ranks alone.
    written = write_in_cells(drawn, texts, ids.shape, lambda i, j: _ink(int(ids[i, j]), order))
    if not written and numbers is not None:
        written = write_in_cells(drawn, _texts(ids, order, None), ids.shape, lambda i, j: _ink(int(ids[i, j]), order))
    if not written:
        for group, i in order.items():
            hatch_cells(drawn, where(ids == group), HATCHES[i % len(HATCHES)], _ink(group, order), alpha=0.8)
        for i, patch in enumerate(key.get_patches()[int((ids == 0).any()) + int((ids == -1).any()) :] if key else ()):
            if i < min(len(order), _MOST_LISTED):
                patch.set_hatch(HATCHES[i % len(HATCHES)])
    hatch_cells(drawn, where(ids == -1), "xxxx", GREY)
    return drawn


def letters(index: int) -> str:
    """Returns the name of the group at `index`, from 0: A … Z, AA, AB, …"""
    name = ""
    index += 1
    while index:
        index, last = divmod(index - 1, 26)
        name = string.ascii_uppercase[last] + name
    return name


def _face(group: int, order: dict[int, int]) -> str:
    return _COLOURS[order[group] % len(_COLOURS)] if group > 0 else _OWN


def _ink(group: int, order: dict[int, int]) -> str:
    return contrasting(_face(group, order)) if group >= 0 else GREY


def _colour(ax: Axes, ids: Floats, order: dict[int, int]) -> None:
    rows, columns = ids.shape
    colours = np.zeros((rows, columns, 4))
    edges = np.zeros((rows, columns, 4))
    for cell in where(ids >= 0):
        colours[cell] = to_rgba(_face(int(ids[cell]), order))
        edges[cell] = to_rgba(LIGHT_INK)
    ax.pcolormesh(np.arange(columns + 1), np.arange(rows + 1), colours, edgecolors=edges.reshape(-1, 4), linewidth=0.4)


def _texts(ids: Floats, order: dict[int, int], ranks: Floats | None) -> dict[tuple[int, int], str]:
    texts = {}
    for cell in where(ids >= 0):
        group = int(ids[cell])
        letter = letters(order[group]) if group > 0 else ""
        rank = "" if ranks is None or np.isnan(ranks[cell]) else f"{ranks[cell]:.0f}"
        if letter or rank:
            texts[cell] = f"{letter} {rank}".strip()
    return texts


def _explain(ax: Axes, ids: Floats, order: dict[int, int]) -> Legend | None:
    """Adds the legend, groups last; they are hatched later if letters do not fit."""
    handles: list[Any] = []
    names: list[str] = []
    if (ids == 0).any():
        handles.append(Patch(facecolor=_OWN, edgecolor=DARK_INK, linewidth=0.4))
        names.append("factors of its own")
    if (ids == -1).any():
        handles.append(Patch(facecolor=CLEAR, edgecolor=GREY, hatch="xxxx", linewidth=0.4))
        names.append("dropped (rank 0)")
    for group, i in list(order.items())[:_MOST_LISTED]:
        count = int((ids == group).sum())
        handles.append(Patch(facecolor=_face(group, order), edgecolor=_ink(group, order), linewidth=0))
        names.append(f"{letters(i)}: shared by {count} site{'s' if count != 1 else ''}")
    if len(order) > _MOST_LISTED:
        handles.append(Patch(facecolor=CLEAR, linewidth=0))
        names.append(f"{letters(_MOST_LISTED)} … {letters(len(order) - 1)}: further groups")
    return legend_beside(ax, handles, names) if handles else None
