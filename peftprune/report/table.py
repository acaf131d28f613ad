"""Tables as they are shown: which columns a frame has for a reader, and how its values are written.

A view keeps, beside every number's text, the number itself at full precision and its place in the frame, so that what
is shown can be held against the store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

NONE = "–"
"""What stands where there is no value."""

Record = Mapping[Any, Any]
"""A row of a frame, by column."""


@dataclass(frozen=True)
class Part:
    """A piece of a cell: its `text`, and the `column` and exact `value` of the number it shows, if it shows one."""

    text: str
    column: str = ""
    value: str = ""


@dataclass(frozen=True)
class Cell:
    """What stands in one field: `parts` side by side, and `below` them, in smaller type."""

    parts: tuple[Part, ...]
    below: tuple[Part, ...] = ()

    @property
    def text(self) -> str:
        """The first line as plain text."""
        return "".join(part.text for part in self.parts)


@dataclass(frozen=True)
class Column:
    """A column: its title, how a record of the frame becomes a cell, and whether it is aligned as numbers are."""

    title: str
    cell: Callable[[Record], Cell]
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """One row: the frame's index, and the cells."""

    key: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class View:
    """A table to be shown.

    Attributes:
        caption: what the table holds.
        place: of which part of the study, in words; empty where the caption says all.
        frame: the frame that its numbers are from.
        columns, rows: what is shown.
        note: how to read it.
    """

    caption: str
    place: str
    frame: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


def view(
    caption: str, name: str, frame: pd.DataFrame, columns: Sequence[Column], note: str = "", place: str = ""
) -> View:
    """Lay out a frame. Its index is kept as the rows' keys, so a part of a frame keeps its place in the whole."""
    records = frame.to_dict("records")
    rows = (
        Row(str(key), tuple(column.cell(record) for column in columns))
        for key, record in zip(frame.index, records, strict=True)
    )
    return View(caption, place, name, tuple(columns), tuple(rows), note)


def facts(caption: str, name: str, values: Mapping[str, Any], note: str = "") -> View:
    """Names and values, one a row."""
    frame = pd.DataFrame({"name": list(values), "value": list(values.values())}, index=list(values), dtype=object)
    title = Column("", lambda record: Cell((Part(str(record["name"]).replace("_", " ")),)), numeric=False)
    return view(caption, name, frame, (title, plain("value", "value")), note)


# --- columns ----------------------------------------------------------------------------------------------------------


def words(name: str, title: str | None = None) -> Column:
    """Text as it is."""
    return Column(_title(name, title), lambda r: Cell((Part(as_text(r[name])),)), numeric=False)


def plain(name: str, title: str | None = None) -> Column:
    """Any value; numbers in full."""
    return Column(_title(name, title), lambda r: Cell((_part(r, name, as_text),)), numeric=False)


def count(name: str, title: str | None = None) -> Column:
    """A whole number, or a mean of some, with thousands marked."""
    return Column(_title(name, title), lambda r: Cell((_part(r, name, grouped),)))


def number(name: str, digits: int, title: str | None = None, *, factor: float = 1.0, signed: bool = False) -> Column:
    """A number times `factor`, rounded for the eye."""
    return Column(_title(name, title), lambda r: Cell((_part(r, name, lambda v: rounded(v * factor, digits, signed)),)))


def p_value(name: str, title: str) -> Column:
    """A p, bounded from below where it would round to nothing."""
    return Column(title, lambda r: Cell((_part(r, name, p_text),)))


def interval(low: str, high: str, title: str, digits: int = 4, *, signed: bool = True) -> Column:
    """Both ends of an interval."""
    return Column(title, lambda r: Cell(_ends(r, low, high, digits, signed)))


def score(metric: str) -> Column:
    """Mean and standard deviation over seeds, with the mean's interval below."""
    low, high = f"{metric}_low", f"{metric}_high"

    def cell(record: Record) -> Cell:
        parts = [_part(record, f"{metric}_mean", lambda v: rounded(v, 4))]
        if not missing(record[f"{metric}_std"]):
            parts += [Part(" ± "), _part(record, f"{metric}_std", lambda v: rounded(v, 4))]
        below = () if missing(record[f"{metric}_mean"]) else (Part("95 %: "), *_ends(record, low, high, 4, False))
        return Cell(tuple(parts), below)

    return Column(metric, cell)


# --- texts ------------------------------------------------------------------------------------------------------------


def missing(value: Any) -> bool:
    """Whether there is no value: None, NaN or pandas' NA."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def exact(value: Any) -> str:
    """A number so that reading it back gives the same number; empty for anything else."""
    if missing(value) or isinstance(value, bool | str):
        return ""
    found = value.item() if hasattr(value, "item") else value
    return repr(found) if isinstance(found, int | float) and not isinstance(found, bool) else ""


def as_text(value: Any) -> str:
    """Any value in words."""
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
    """A number without decimals, thousands marked by commas."""
    return value if isinstance(value, str) else f"{value:,.0f}".replace("-", "−")


def rounded(value: float, digits: int, signed: bool = False) -> str:
    """A number with so many decimals; `signed` writes a plus as well. What rounds to zero has no minus."""
    return f"{round(value, digits) + 0.0:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def p_text(value: float) -> str:
    """A p with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def span(low: float, high: float, digits: int = 4) -> str:
    """An interval with signs, in words."""
    return f"{rounded(low, digits, True)} to {rounded(high, digits, True)}"


def _title(name: str, title: str | None) -> str:
    return name.replace("_", " ") if title is None else title


def _part(record: Record, name: str, write: Callable[[Any], str]) -> Part:
    value = record[name]
    return Part(NONE) if missing(value) else Part(write(value), name, exact(value))


def _ends(record: Record, low: str, high: str, digits: int, signed: bool) -> tuple[Part, ...]:
    if missing(record[low]) or missing(record[high]):
        return (Part(NONE),)
    return (
        _part(record, low, lambda v: rounded(v, digits, signed)),
        Part(" to "),
        _part(record, high, lambda v: rounded(v, digits, signed)),
    )
