"""Writes files whole or not at all, and reads them back."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftprune.errors import UsageError

if TYPE_CHECKING:
    pass


_ASIDE = ".tmp"
"""Ends the names of files that are being written."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write aside, sync, rename: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes on several machines may write the same file, so that their numbers do not tell them apart.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_ASIDE}")
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
    """Write a file where a user asked for it.

    Raises:
        UsageError: when it cannot be written.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        problem, cure = f"cannot be written ({error.strerror})", "Name a file in a folder you may write to"
        raise UsageError.of("path", str(path), problem, cure) from None


def write_json(path: Path, value: Any) -> None:
    """One JSON document, atomically."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """One JSON document a line, atomically."""
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_jsonl(path: Path) -> list[Any]:
    """The rows of a file that `write_jsonl` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
