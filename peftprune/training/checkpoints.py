"""Checkpoints: written whole, verified by checksum, and found again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

STATE_FILE = "peftprune_state.pt"


MANIFEST_FILE = "manifest.json"


KEPT_CHECKPOINTS = 2


_log = logging.getLogger(__name__)


def write_manifest(folder: Path) -> None:
    """Sync every file of a checkpoint and list their checksums, last of all."""
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as f:
            sums[str(path.relative_to(folder))] = hashlib.file_digest(f, "sha256").hexdigest()
            os.fsync(f.fileno())
    with (folder / MANIFEST_FILE).open("w") as f:
        json.dump(sums, f, indent=1)
        f.flush()
        os.fsync(f.fileno())


def is_complete(folder: Path) -> bool:
    """True where the manifest is there and every file matches it."""
    try:
        sums = json.loads((folder / MANIFEST_FILE).read_text())
        for name, expected in sums.items():
            with (folder / name).open("rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != expected:
                    return False
        return STATE_FILE in sums
    except (OSError, ValueError, AttributeError):
        return False


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of an arm, newest first, complete or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def usable_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. Newer ones that are damaged are reported and removed.

    They could not stay: the next checkpoint would be an older one, and the first to be given up.
    """
    for path in checkpoints_in(folder):
        if is_complete(path):
            return path
        _log.warning(
            "%s: %s is damaged (a file is missing or fails its checksum). It is passed over and removed; training "
            "goes on from the newest whole checkpoint, or from the start where there is none",
            folder.parent.name,
            path.name,
        )
        shutil.rmtree(path)
    return None
