"""Published results of other papers. They come from other setups and are labelled as such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from peftprune.errors import UsageError

COLUMNS = ("method", "params", "model", "task", "metric", "value", "seeds", "source", "table", "note")
_NEVER_EMPTY = ("method", "model", "task", "metric", "value", "source")


def read_published(folder: str | Path) -> pd.DataFrame:
    """Reads every CSV file of a folder, such as `benchmarks/published` of the repository: one file per printed table.

    There is one row per number, files in the order of their names: `method` as printed, `params` (trainable, rounded as
    printed; missing where not stated), `model`, `task` ("average" for a printed average), `metric`, `value` on the
    printed scale (percent), `seeds` (missing where not stated), `source`, `table`, `note`, and `file`.

    Raises UsageError for a folder that does not exist or holds no CSV file, and a file with other columns, an empty
    cell in a required column (method, model, task, metric, value, source), or text in place of a number.
    """
    path = Path(folder)
    files = sorted(path.glob("*.csv"))
    if not files:
        cure = "Give a folder of CSV files, such as benchmarks/published"
        raise UsageError.of("folder", str(path), "holds no CSV file" if path.is_dir() else "is not a folder", cure)
    return pd.concat([_read(file) for file in files], ignore_index=True)


def published_for(tasks: Sequence[str]) -> pd.DataFrame:
    """Returns the published results for these tasks that come with the package, as `read_published` does."""
    # A wheel holds the files inside the package, a checkout beside it.
    folders = (Path(__file__).parents[1] / "_published", Path(__file__).parents[2] / "benchmarks" / "published")
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        return pd.DataFrame(columns=[*COLUMNS, "file"])
    found = read_published(folder)
    return found[found["task"].isin(list(tasks))].reset_index(drop=True)


def _read(file: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UsageError.of("file", str(file), f"is not a CSV file ({error})", "Correct or remove it") from error
    if tuple(frame.columns) != COLUMNS:
        raise UsageError.of("file", str(file), "has other columns", f"They must be {','.join(COLUMNS)}")
    for name in _NEVER_EMPTY:
        if (empty := frame[name].str.strip() == "").any():
            raise UsageError.of("file", f"{file}:{_line(empty)}", f"has no {name}", "Fill it in or remove the row")
    for name, whole in (("params", True), ("value", False), ("seeds", True)):
        numbers = pd.to_numeric(frame[name], errors="coerce")
        wrong = numbers.isna() & (frame[name] != "")
        if whole:
            wrong |= numbers % 1 > 0
        if wrong.any():
            cell = frame[name][wrong].iloc[0]
            raise UsageError.of("file", f"{file}:{_line(wrong)}", f"has {cell!r} for {name}", "Write a plain number")
        frame[name] = numbers.astype("Int64") if whole else numbers.astype("float64")
    return frame.assign(file=file.name)


def _line(marked: pd.Series[bool]) -> int:
    """Returns the line number of the first marked row; the header is line 1."""
    return int(marked.to_numpy().argmax()) + 2
