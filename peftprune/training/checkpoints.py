"""Checkpoints: written whole, verified by checksum, and found again."""

import hashlib
import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError
from peftprune.files import replace_folder, write_atomically
from peftprune.strategy.lazy import torch

STATE_FILE = "peftprune_state.pt"
"""Holds what a resumed run needs beside the Trainer's own files."""
MANIFEST_FILE = "manifest.json"
INCOMPLETE = "incomplete"
"""The folder in which a checkpoint is written before it is whole."""
KEPT_CHECKPOINTS = 2

_log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Returns the checkpoint of a step, under the name that transformers gives it."""
    return folder / f"checkpoint-{step}"


@contextmanager
def new_checkpoint(folder: Path, step: int, kept: int | None = None) -> Iterator[Path]:
    """Yields the path to write a checkpoint to, in `folder / INCOMPLETE`.

    At the end it gets a manifest and moves to `folder`; then all but the newest `KEPT_CHECKPOINTS` and that of the step
    `kept` are removed.
    """
    aside = folder / INCOMPLETE
    shutil.rmtree(aside, ignore_errors=True)
    try:
        written = checkpoint_path(aside, step)
        yield written
        write_manifest(written)
        replace_folder(written, checkpoint_path(folder, step))
    finally:
        # On a full disk half a checkpoint would leave no room for the report of the failure.
        shutil.rmtree(aside, ignore_errors=True)
    for old in checkpoints_in(folder)[KEPT_CHECKPOINTS:]:
        if step_of(old) != kept:
            shutil.rmtree(old)


def write_manifest(checkpoint: Path) -> None:
    """Syncs every file of a checkpoint and writes their checksums."""
    sums = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        with path.open("rb") as f:
            sums[str(path.relative_to(checkpoint))] = hashlib.file_digest(f, "sha256").hexdigest()
            os.fsync(f.fileno())
    write_atomically(checkpoint / MANIFEST_FILE, json.dumps(sums, indent=1).encode())


def write_state(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Writes plain values and tensors into a checkpoint, atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(checkpoint / STATE_FILE, buffer.getvalue())


def read_state(checkpoint: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what `write_state` wrote. Raises UsageError for a file that is damaged or lacks a needed entry."""
    try:
        state = torch.load(checkpoint / STATE_FILE, weights_only=True)
        if isinstance(state, dict) and state.keys() >= {*needed}:
            return state
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        pass
    problem = f"has no {STATE_FILE} that can be read: it is damaged, or was written without PruningCallback"
    cure = "Resume from an older checkpoint, or start again"
    raise UsageError.of("resume_from_checkpoint", str(checkpoint), problem, cure)


def is_complete(checkpoint: Path) -> bool:
    try:
        sums = json.loads((checkpoint / MANIFEST_FILE).read_text())
        for name, expected in sums.items():
            with (checkpoint / name).open("rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != expected:
                    return False
        return STATE_FILE in sums
    except (OSError, ValueError, AttributeError):
        return False


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints_in(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, newest first, complete or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def usable_checkpoint(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint. Newer ones are damaged: each is reported and removed.

    They must go: the next checkpoint would be an older one, and the first to be removed.
    """
    for path in checkpoints_in(folder):
        if is_complete(path):
            return path
        _log.warning(
            "%s: %s is damaged (a file is missing or fails its checksum) and is removed. Training resumes from the "
            "newest complete checkpoint, or starts again if there is none",
            folder.parent.name,
            path.name,
        )
        shutil.rmtree(path)
    return None
