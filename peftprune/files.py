"""Writes files and folders whole or not at all, and reads files back."""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError

_ASIDE = ".tmp"
"""Ends the names of files and folders that are being written."""


def shipped(inside: str, beside: str) -> Path:
    """Returns a folder that comes with peftprune: inside the package in a wheel, beside it in a checkout."""
    places = Path(__file__).parent / inside, Path(__file__).parents[1] / beside
    return next(filter(Path.is_dir, places), places[0])


def check_path(field: str, value: Any) -> None:
    """Raises UsageError, which names the field, for a value that is not a name or a path."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError.of(field, value, "is not a name or path", "Give text")


def _beside(path: Path) -> Path:
    # Processes on several machines may write to the same path, so a process id would not be unique.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ASIDE}")


def write_atomically(path: Path, data: bytes) -> None:
    """Writes to a temporary file, syncs and renames it: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _beside(path)
    try:
        with aside.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_output(path: Path, data: bytes) -> None:
    """Writes a file to a path that the user gave. Raises UsageError when it cannot be written."""
    try:
        write_atomically(path, data)
    except OSError as error:
        problem, cure = f"cannot be written ({error.strerror})", "Name a file in a folder you may write to"
        raise UsageError.of("path", str(path), problem, cure) from None


def write_json(path: Path, value: Any) -> None:
    """Writes one JSON document atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Writes one JSON document per line, atomically."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_jsonl(path: Path) -> list[Any]:
    """Returns the rows of a file that `write_jsonl` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def remove_unfinished(folder: Path) -> None:
    """Removes the files that a killed process was writing in a folder."""
    for path in folder.glob(f".*{_ASIDE}"):
        path.unlink(missing_ok=True)


@contextmanager
def write_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder beside `target`, which replaces `target` at the end; after an error nothing of it is left.

    Raises UsageError when the folder cannot be made.
    """
    aside = _beside(target)
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        problem, cure = f"cannot be written ({error.strerror})", "Name a folder in a place you may write to"
        raise UsageError.of("out", str(target), problem, cure) from None
    try:
        yield aside
        _sync(aside)
        replace_folder(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Renames a synced folder to `target`. A folder that is there is removed afterwards, and kept on failure."""
    old = _beside(target)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flushes every file and gives it the default mode: safetensors makes its files unreadable to other users."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb") as f:
                os.fsync(f.fileno())
