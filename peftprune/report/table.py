"""Tables for readers: which columns of a frame are shown and how values are written, for any output format.

Beside the text of a number, a table holds its exact value and its place in the frame, so that what is shown can be
compared with the store.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

NONE = "–"
"""The text of a missing value."""

Record = Mapping[Any, Any]
"""A row of a frame, by column."""


@dataclass(frozen=True)
class Part:
    """A piece of a cell: its `text`, and the `column` and exact `value` of the number it shows, if any."""

    text: str
    column: str = ""
    value: str = ""


@dataclass(frozen=True)
class Cell:
    """The contents of a field: `parts` side by side, and `below` them, in smaller type."""

    parts: tuple[Part, ...]
    below: tuple[Part, ...] = ()

    @property
    def text(self) -> str:
        """The first line as plain text."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Column:
    """A column: heading and cell of a record; numbers are aligned right, and a terminal shows a `detail` if it fits."""

    title: str
    cell: Callable[[Record], Cell]
    numeric: bool = True
    detail: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its index in the frame, and the cells."""

    key: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table to be shown.

    The numbers are from the frame named `frame`; `place` is the part of the study in words, empty where the caption
    suffices; `note` says how to read the table, and `detail` its detail columns and the second lines of cells.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    frame: str = ""
    place: str = ""
    note: str = ""
    detail: str = ""


def table(caption: str, rows: pd.DataFrame | Sequence[Record], columns: Sequence[Column], **about: str) -> Table:
    """Lays out rows; `about` holds further fields of `Table`.

    The index of a frame becomes the rows' keys, so a part of a frame keeps its place in the whole.
    """
    named = zip(rows.index, rows.to_dict("records"), strict=True) if isinstance(rows, pd.DataFrame) else enumerate(rows)
    shown = (Row(str(key), tuple(column.cell(record) for column in columns)) for key, record in named)
    return Table(caption, tuple(columns), tuple(shown), **about)


def with_reference(shown: Table, rows: pd.DataFrame) -> Table:
    """Adds rows that stand beside those of the frame; columns that they lack stay empty."""
    added = []
    for record in rows.to_dict("records"):
        filled = defaultdict(lambda: None, record)
        cells = (column.cell(filled) for column in shown.columns)
        added.append(Row("", tuple(Cell(tuple(Part(part.text) for part in cell.parts)) for cell in cells)))
    return replace(shown, rows=(*shown.rows, *added))


def fitted(shown: Table, width: int, gap: int = 2) -> Table:
    """Leaves out the detail columns that do not fit into `width` characters, with `gap` of them between columns."""
    columns = list(enumerate(shown.columns))
    sizes = [max(len(text) for text in (c.title, *(r.cells[i].text for r in shown.rows))) for i, c in columns]
    kept = [i for i, c in columns if not c.detail]
    room = width + gap - sum(sizes[i] + gap for i in kept)
    for i, c in columns:
        if c.detail and sizes[i] + gap <= room:
            kept.append(i)
            room -= sizes[i] + gap
    kept.sort()
    rows = (replace(row, cells=tuple(row.cells[i] for i in kept)) for row in shown.rows)
    return replace(shown, columns=tuple(shown.columns[i] for i in kept), rows=tuple(rows))


def facts(caption: str, frame: str, values: Mapping[str, Any], note: str = "") -> Table:
    """Lays out names and values, one pair per row."""
    rows = pd.DataFrame({"name": list(values), "value": list(values.values())}, index=list(values), dtype=object)
    columns = (column("name", "", lambda name: name.replace("_", " "), numeric=False), plain("value"))
    return table(caption, rows, columns, frame=frame, note=note)


def column(
    name: str, title: str | None, write: Callable[[Any], str], *, numeric: bool = True, detail: bool = False
) -> Column:
    """Returns a column of one value per cell, written by `write`; the title defaults to the name."""
    heading = name.replace("_", " ") if title is None else title
    return Column(heading, lambda record: Cell((_part(record, name, write),)), numeric, detail)


def plain(name: str, title: str | None = None) -> Column:
    """Returns a column of any values, numbers in full."""
    return column(name, title, as_text, numeric=False)


def count(name: str, title: str | None = None, *, detail: bool = False) -> Column:
    """Returns a column of integers, or means of integers, with thousands separators."""
    return column(name, title, grouped, detail=detail)


def number(
    name: str, digits: int, title: str | None = None, *, factor: float = 1.0, signed: bool = False, detail: bool = False
) -> Column:
    """Returns a column of numbers times `factor`, rounded to `digits` decimals."""
    return column(name, title, lambda value: rounded(value * factor, digits, signed), detail=detail)


def difference(title: str) -> Column:
    """Returns a column of differences with three decimals, with their interval; empty where there is none."""

    def cell(record: Record) -> Cell:
        if missing(record["difference"]):
            return Cell((Part(""),))
        bounds = record["low_holm"], record["high_holm"]
        beside = f" ({' to '.join(rounded(b, 3, True) for b in bounds)})" if bounded(*bounds) else ""
        return Cell((_part(record, "difference", lambda v: rounded(v, 3, True)), Part(beside)))

    return Column(title, cell)


def percent(name: str, title: str | None = None, digits: int = 2) -> Column:
    """Returns a column of shares in percent."""
    return column(name, title, lambda value: f"{value:.{digits}%}")


def p_value(name: str, title: str, *, detail: bool = False, runs: str = "") -> Column:
    """Returns a column of p-values; none where the column `runs` counts a single run, which tests no method."""

    def cell(record: Record) -> Cell:
        alone = bool(runs) and record[runs] == 1
        return Cell((Part(NONE) if alone else _part(record, name, p_text),))

    return Column(title, cell, detail=detail)


def needed(name: str, title: str, otherwise: str = "", *, detail: bool = False) -> Column:
    """Returns a column of how many runs a verdict would need; `otherwise` stands where no number suffices."""

    def cell(record: Record) -> Cell:
        endless = not missing(record[name]) and math.isinf(record[name])
        return Cell((Part(otherwise) if endless else _part(record, name, grouped),))

    return Column(title, cell, detail=detail)


def interval(
    low: str = "low", high: str = "high", title: str = "95 % interval", *, signed: bool = True, detail: bool = False
) -> Column:
    """Returns a column of 95 % intervals; an unbounded one counts as missing."""
    return Column(title, lambda record: Cell(_bounds(record, low, high, signed)), detail=detail)


def score(metric: str, digits: int = 4, *, detail: bool = False) -> Column:
    """Returns a column of means and standard deviations over seeds, with the mean's interval below."""

    def cell(record: Record) -> Cell:
        parts = [_part(record, f"{metric}_mean", lambda v: rounded(v, digits))]
        if not missing(record[f"{metric}_std"]):
            parts += [Part(" ± "), _part(record, f"{metric}_std", lambda v: rounded(v, digits))]
        bounds = _bounds(record, f"{metric}_low", f"{metric}_high", signed=False)
        return Cell(tuple(parts), () if missing(record[f"{metric}_mean"]) else (Part("95 %: "), *bounds))

    return Column(metric, cell, detail=detail)


def missing(value: Any) -> bool:
    """Returns whether a value is None, NaN or pandas' NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def bounded(low: Any, high: Any) -> bool:
    """Returns whether an interval has two finite ends."""
    return not (missing(low) or missing(high)) and math.isfinite(low) and math.isfinite(high)


def exact(value: Any) -> str:
    """Returns a number as text that reads back as the same number; an empty string for anything else."""
    if missing(value) or isinstance(value, bool | str):
        return ""
    found = value.item() if hasattr(value, "item") else value
    return repr(found) if isinstance(found, int | float) and not isinstance(found, bool) else ""


def as_text(value: Any) -> str:
    """Returns any value as text."""
    if missing(value):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(as_text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {as_text(v)}" for k, v in value.items()) or NONE
    return str(value)


def grouped(value: Any) -> str:
    """Returns a number without decimals, with thousands separators."""
    return value if isinstance(value, str) else f"{value:,.0f}".replace("-", "−")


def rounded(value: float, digits: int, signed: bool = False) -> str:
    """Returns a number with `digits` decimals; `signed` writes a plus too, and the sign of what rounds to zero."""
    return f"{(value if signed else round(value, digits)) + 0.0:{'+' * signed},.{digits}f}".replace("-", "−")


def p_text(value: float, name: str = "") -> str:
    """Returns a p-value with three decimals; with a name as an equation."""
    return f"{name} < 0.001".lstrip() if value < 0.001 else f"{name}{' = ' * bool(name)}{value:.3f}"


def span(low: float, high: float) -> str:
    """Returns an interval with signs, in words."""
    return f"{rounded(low, 4, True)} to {rounded(high, 4, True)}"


def _part(record: Record, name: str, write: Callable[[Any], str]) -> Part:
    value = record[name]
    return Part(NONE) if missing(value) else Part(write(value), name, exact(value))


def _bounds(record: Record, low: str, high: str, signed: bool) -> tuple[Part, ...]:
    if not bounded(record[low], record[high]):
        return (Part(NONE),)
    first, last = (_part(record, name, lambda v: rounded(v, 4, signed)) for name in (low, high))
    return first, Part(" to "), last
