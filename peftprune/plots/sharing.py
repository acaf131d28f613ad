"""Which sites have their own factors, which share them, and which were dropped."""

import itertools
import string
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from peftprune.plots import cells
from peftprune.plots.legends import WIDTH, legend_beside
from peftprune.plots.style import DARK_INK, GREY, HATCHES, LIGHT_INK, PALETTE, arrange, axes_or_new, contrasting
from peftprune.plots.validation import Floats, forbid

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
    ids = cells.as_grid("groups", groups, layer_labels, kind_labels)
    known = ids[~np.isnan(ids)]
    wrong = (known < -1) | (known != np.round(known))
    cure = "Give 0 for own, k > 0 for a group, -1 for dropped"
    forbid("groups", known, wrong, "is not a whole number from -1", cure)
    numbers = None if ranks is None else cells.as_grid("ranks", ranks, layer_labels, kind_labels)
    order = {int(group): i for i, group in enumerate(np.unique(known[known > 0]))}

    faces = {0: _OWN} | {group: _COLOURS[i % len(_COLOURS)] for group, i in order.items()}
    inks = {group: contrasting(face) for group, face in faces.items()}

    width, height = cells.panel_size(*ids.shape)
    if numbers is not None:
        width = min(max(width, 0.32 * ids.shape[1]), 5.0)
    height = min(max(height, 0.15 * len(ids)), 7.0)  # high enough for letters in 48 layers
    drawn = axes_or_new(ax, cells.with_labels((width, height), kind_labels, WIDTH if legend else 0.0))
    colours, edges = np.zeros((*ids.shape, 4)), np.zeros((*ids.shape, 4))
    for cell in cells.where(ids >= 0):
        colours[cell], edges[cell] = to_rgba(faces[int(ids[cell])]), to_rgba(LIGHT_INK)
    columns, rows = np.arange(ids.shape[1] + 1), np.arange(len(ids) + 1)
    drawn.pcolormesh(columns, rows, colours, edgecolors=edges.reshape(-1, 4), linewidth=0.4, clip_on=False)
    cells.label_grid(drawn, layer_labels, kind_labels, title=title)
    key = _explain(drawn, ids, order, faces) if legend else None
    if ax is None:
        arrange(drawn)

    def write(ranks: Floats | None) -> bool:
        return cells.write_in_cells(drawn, _texts(ids, order, ranks), ids.shape, lambda i, j: inks[int(ids[i, j])])

    # Without colour only letters distinguish groups, not ranks alone.
    if not write(numbers) and (numbers is None or not write(None)):
        hatches = dict(zip(order, itertools.cycle(HATCHES), strict=False))
        for group, hatch in hatches.items():
            cells.hatch_cells(drawn, cells.where(ids == group), hatch, inks[group], alpha=0.8)
        shared = key.get_patches()[int((ids == 0).any()) + int((ids == -1).any()) :] if key else []
        for patch, hatch in zip(shared[:_MOST_LISTED], hatches.values(), strict=False):
            patch.set_hatch(hatch)
    cells.hatch_cells(drawn, cells.where(ids == -1), "xxxx", GREY)
    return drawn


def letters(index: int) -> str:
    """Returns the name of the group at `index`, from 0: A … Z, AA, AB, …"""
    name = ""
    index += 1
    while index:
        index, last = divmod(index - 1, 26)
        name = string.ascii_uppercase[last] + name
    return name


def _texts(ids: Floats, order: dict[int, int], ranks: Floats | None) -> dict[tuple[int, int], str]:
    texts = {}
    for cell in cells.where(ids >= 0):
        group = int(ids[cell])
        letter = letters(order[group]) if group > 0 else ""
        rank = "" if ranks is None or np.isnan(ranks[cell]) else f"{ranks[cell]:.0f}"
        if letter or rank:
            texts[cell] = f"{letter} {rank}".strip()
    return texts


def _explain(ax: Axes, ids: Floats, order: dict[int, int], faces: dict[int, str]) -> Legend | None:
    """Adds the legend, groups last; they are hatched later if letters do not fit."""
    entries = []
    if (ids == 0).any():
        entries.append((Patch(facecolor=_OWN, edgecolor=DARK_INK, linewidth=0.4), "factors of its own"))
    if (ids == -1).any():
        dropped = Patch(facecolor=cells.CLEAR, edgecolor=GREY, hatch="xxxx", linewidth=0.4)
        entries.append((dropped, "dropped (rank 0)"))
    for group, i in list(order.items())[:_MOST_LISTED]:
        count, face = int((ids == group).sum()), faces[group]
        text = f"{letters(i)}: shared by {count} site{'s' if count != 1 else ''}"
        entries.append((Patch(facecolor=face, edgecolor=contrasting(face), linewidth=0), text))
    if len(order) > _MOST_LISTED:
        text = f"{letters(_MOST_LISTED)} … {letters(len(order) - 1)}: further groups"
        entries.append((Patch(facecolor=cells.CLEAR, linewidth=0), text))
    return legend_beside(ax, entries) if entries else None
