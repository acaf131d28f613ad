"""Read tables from files, and labelled tasks from tables. Every error names the file and the row."""

import csv
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError
from peftprune.strategy.lazy import Dataset
from peftprune.tasks.base import TEXT_COLUMNS, make_dataset
from peftprune.tasks.kinds import KINDS, Kind

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
_LARGEST = 3.4e38
"""Labels are stored as float32, in which a larger number is infinite."""


@dataclass(frozen=True)
class Table:
    """A file's rows as columns of equal length, and where in the file each row is.

    `rows[i]` is the line (in text formats) or row (in parquet) of the i-th value, from 1; `unit` names which.
    """

    path: Path
    columns: dict[str, list[object]]
    rows: list[int]
    unit: str = "line"

    def where(self, index: int) -> str:
        """Returns the place of the i-th row for a message: file, unit and number."""
        return f"{self.path}, {self.unit} {self.rows[index]}"

    def column(self, name: str, field: str) -> list[object]:
        """Returns the values of one column; `field` is the argument that the error names if there is no such column."""
        if name not in self.columns:
            cure = f"Choose among its columns: {', '.join(self.columns)}."
            raise UsageError.of(field, name, f"is not a column of {self.path}", cure)
        return self.columns[name]

    def texts(self, name: str) -> list[str]:
        """Returns a column of strings; a missing value or another type is an error."""
        values = self.column(name, "text")
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise UsageError.of(name, value, f"is not a text ({self.where(index)})", "Give every row a string.")
        return values  # type: ignore[return-value]


def read_table(path: str | Path) -> Table:
    """Reads CSV (quoted as in RFC 4180), TSV (no quoting), JSON lines or parquet, by suffix; `.gz` for text formats.

    Text is UTF-8, with or without a byte-order mark; lines end in LF or CRLF. The first line of CSV and TSV is the
    header. Values of CSV and TSV are strings.

    Raises UsageError for a file that is missing, empty, of another format, or broken.
    """
    path = Path(path)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in FORMATS or (suffix == ".parquet" and path.suffix == ".gz"):
        cure = f"Use one of {', '.join(FORMATS)}; the text formats may end in .gz."
        raise UsageError.of("file", str(path), "has a suffix that peftprune does not read", cure)
    if not os.path.isfile(path):
        raise UsageError.of("file", str(path), "does not exist", "Check the path.")
    readers: tuple[Callable[[Path], Table], ...] = (_read_csv, read_tsv, _read_jsonl, _read_parquet)
    table = dict(zip(FORMATS, readers, strict=True))[suffix](path)
    if not table.rows:
        raise UsageError.of("file", str(path), "holds no rows", "Give a file with data.")
    return table


def read_tsv(path: Path, header: Sequence[str] | None = None, broken_rows: int = 0) -> Table:
    """Reads tab-separated values without quoting: each tab separates, each LF ends a row, nothing is escaped.

    `header` holds the column names where the file has no header line. As many as `broken_rows` rows with a wrong number
    of fields are left out; one more is an error.
    """
    # Not str.splitlines(): sentences may hold U+2028 and other characters that it takes for line ends.
    lines = [line.removesuffix("\r") for line in _read_text(path).removesuffix("\n").split("\n")]
    first = 1 if header else 2
    names = list(header) if header else lines.pop(0).split("\t")
    fields = [line.split("\t") for line in lines] if lines != [""] else []
    return _table(path, names, list(enumerate(fields, first)), broken_rows)


def _table(path: Path, names: list[str], rows: list[tuple[int, list[str]]], broken_rows: int = 0) -> Table:
    """Returns rows of fields, with their lines, as a `Table`; a wrong number of fields is an error."""
    _check_names(path, names)
    if len(broken := [(number, len(row)) for number, row in rows if len(row) != len(names)]) > broken_rows:
        number, width = broken[0]
        problem = f"has {width} fields in line {number}, but {len(names)} columns"
        raise UsageError.of("file", str(path), problem, "Repair that line; it may hold a stray separator or line end.")
    kept = [(number, row) for number, row in rows if len(row) == len(names)]
    columns: dict[str, list[object]] = {name: [row[i] for _, row in kept] for i, name in enumerate(names)}
    return Table(path, columns, [number for number, _ in kept])


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise UsageError.of("file", str(path), f"has two columns of one name ({names})", "Rename one of them.")


def read_bytes(path: Path) -> bytes:
    """Returns the contents of a file, decompressed if its name ends in `.gz`."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _read_text(path: Path) -> str:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        if "\0" in text:  # UTF-16 without a byte-order mark is valid UTF-8
            line = text.count("\n", 0, text.index("\0")) + 1
            raise UsageError.of("file", str(path), f"has a NUL character in line {line}", "Save it as text in UTF-8.")
        return text
    except UnicodeDecodeError as error:
        raise UsageError.of("file", str(path), f"is not UTF-8 (byte {error.start})", "Save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError.of("file", str(path), f"cannot be read ({error})", "Check the file.") from error


def _read_csv(path: Path) -> Table:
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    # The csv module's limit holds for the whole process, and no field is longer than the file.
    limit = csv.field_size_limit(len(text))
    try:
        names = next(reader, [])
        start = reader.line_num + 1
        for row in reader:
            if row:  # the csv module gives [] for a blank line
                rows.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        problem = f"is broken in line {reader.line_num} ({error})"
        raise UsageError.of("file", str(path), problem, "Check the quotes there, or use JSON lines.") from error
    finally:
        csv.field_size_limit(limit)
    return _table(path, names, rows)


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text. Raises ValueError if it is broken, nested too deeply, or not valid Unicode."""
    try:
        value = json.loads(text, object_pairs_hook=_record)
        # JSON can escape half of a surrogate pair, which is not a character and cannot be stored.
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"{half!r} is half of a surrogate pair; write both halves, or another character") from None
    return value


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(record := dict(pairs)) < len(pairs):
        raise ValueError(f"a name occurs twice: {', '.join(name for name, _ in pairs)}")
    return record


def _read_jsonl(path: Path) -> Table:
    columns: dict[str, list[object]] = {}
    rows: list[int] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            problem = f"is broken in line {number} ({error})"
            raise UsageError.of("file", str(path), problem, "Give one JSON object a line.") from error
        if not isinstance(record, dict):
            problem = f"has no JSON object in line {number}"
            raise UsageError.of("file", str(path), problem, "Give one JSON object a line.")
        for name in [name for name in record if name not in columns]:
            columns[name] = [None] * len(rows)
        for name, values in columns.items():
            values.append(record.get(name))
        rows.append(number)
    return Table(path, columns, rows)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
        _check_names(path, table.column_names)
        columns = table.to_pydict()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError.of("file", str(path), f"cannot be read ({error})", "Check the file.") from error
    return Table(path, columns, list(range(1, table.num_rows + 1)), unit="row")


def class_keys(table: Table, label: str) -> list[str]:
    """Returns the labels as strings: 1, 1.0 (as some formats write it) and "1" are one class."""
    keys = []
    for index, value in enumerate(table.column(label, "label")):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        key = "" if value is None else str(value).strip()
        if not key or (isinstance(value, float) and math.isnan(value)):
            raise UsageError.of(label, value, f"is not a label ({table.where(index)})", "Give every row a label.")
        if isinstance(value, float | list | dict | bytes):
            cure = "For numbers to predict, use regression; otherwise give classes."
            raise UsageError.of(label, value, f"is not a class ({table.where(index)})", cure)
        keys.append(key)
    return keys


def class_indices(table: Table, label: str, classes: Sequence[str], origin: str) -> list[int]:
    """Returns the labels as indices into `classes`; `origin` names where the classes come from."""
    index_of = {key: index for index, key in enumerate(classes)}
    keys = class_keys(table, label)
    for index, key in enumerate(keys):
        if key not in index_of:
            shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            problem = f"is not among the labels of {origin} ({table.where(index)})"
            raise UsageError.of(label, key, problem, f"Use one of: {shown}.")
    return [index_of[key] for key in keys]


def numbers(table: Table, label: str) -> list[float]:
    """Returns the labels as finite floats."""
    found = []
    for index, value in enumerate(table.column(label, "label")):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= _LARGEST:  # neither is NaN
            cure = "Give every row a finite number, or use classification."
            raise UsageError.of(label, value, f"is not a finite number ({table.where(index)})", cure)
        found.append(number)
    return found


def _sorted_classes(keys: Sequence[str]) -> tuple[str, ...]:
    distinct = set(keys)
    if all(re.fullmatch(r"-?\d+", key) for key in distinct):
        return tuple(sorted(distinct, key=lambda key: (int(key), key)))
    return tuple(sorted(distinct))


def _text_columns(text: str | Sequence[str], label: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",")) if isinstance(text, str) else tuple(text)
    if not 1 <= len(names) <= 2 or not all(names) or len(set(names)) < len(names):
        raise UsageError.of("text", text, "does not name one or two columns", 'Give "column" or "first,second".')
    if label in names:
        raise UsageError.of("label", label, "is also a text column", "Labels must not be part of the input.")
    return names


def read_files(train_file: str | Path, test_file: str | Path) -> tuple[Table, Table]:
    """Reads the two files of a task. Raises UsageError as `read_table` does, or if both are one file."""
    train, test = read_table(train_file), read_table(test_file)
    if train.path.resolve() == test.path.resolve():
        raise UsageError.of("test_file", str(test_file), "is the training file too", "Give data not trained on.")
    if len(test.rows) < 2:
        cure = "Give at least two, which scores and their intervals need."
        raise UsageError.of("test_file", str(test_file), f"holds one row only ({test.where(0)})", cure)
    return train, test


def labelled_fields(
    train: Table, test: Table, text: str | Sequence[str], label: str, metrics: Sequence[str] | None, kind: Kind
) -> dict[str, Any]:
    """Returns the fields of a classification or regression `Task`; for the arguments see `Task.from_files`."""
    names = _text_columns(text, label)
    classes: tuple[str, ...] | None = None
    default: tuple[str, ...] = ("pearson", "spearman")
    if KINDS[kind].has_classes:
        classes = _sorted_classes(class_keys(train, label))
        if len(classes) < 2:
            problem = f"holds one class only in {train.path} ({classes[0]!r})"
            raise UsageError.of("label", label, problem, "Give training data with at least two classes.")
        default = ("accuracy", "f1" if len(classes) == 2 else "f1_macro")

    def split(table: Table) -> Dataset:
        found = numbers(table, label) if classes is None else class_indices(table, label, classes, str(train.path))
        texts = [table.texts(column) for column in names]
        for index, row in enumerate(zip(*texts, strict=True)):
            if not "".join(row).strip():
                raise UsageError.of("text", "", f"is empty ({table.where(index)})", "Give every row a text.")
        return make_dataset(texts, found, classes)

    return {
        "text": TEXT_COLUMNS[: len(names)],
        "label_names": classes,
        "metrics": default if metrics is None else tuple(metrics),
        "train": split(train),
        "evaluation": {"test": split(test)},
        "files": {"text": ",".join(names), "label": label, "regression": classes is None},
    }
