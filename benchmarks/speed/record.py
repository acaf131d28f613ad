"""The JSON file of a part: its results, settings, versions and hardware."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from peftprune.files import write_json
from peftprune.models.precision import pick_dtype
from peftprune.study.task_setup import device_name, processor
from peftprune.study.versions import package_versions


def device() -> str:
    """Returns "cuda" or "cpu", a part of the files' names."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def place(out: Path, part: str) -> Path:
    """Returns the path of a part's results."""
    return out / f"speed-{part}-{device()}.json"


def write(
    out: Path, part: str, kind: str, settings: Mapping[str, Any], threads: int | None, results: Mapping[str, Any]
) -> Path:
    """Writes a part's file atomically.

    Args:
        out: the folder.
        part: the name of the file.
        kind: the name of its table in the documents.
        settings: of the part.
        threads: of each step or arm; None where the results state them.
        results: of the measurement.
    """
    path = place(out, part)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"part": part, "kind": kind, **surroundings(threads), "settings": dict(settings), **results})
    return path


def surroundings(threads: int | None) -> dict[str, Any]:
    """Returns device, cores, threads, dtype and versions."""
    return {
        "device": device_name(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "dtype": pick_dtype("auto"),
        "system": sys.platform,
        "machine": platform.machine(),
        "versions": package_versions(),
    }
