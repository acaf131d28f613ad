"""The JSON file of a part: what was found, and all that one must know of how."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from peftprune.files import write_json
from peftprune.models.load import pick_dtype
from peftprune.study.task_setup import device_name, package_versions


def device() -> str:
    """ "cuda" or "cpu": part of the files' names."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def place(out: Path, part: str) -> Path:
    """Where a part's results go."""
    return out / f"speed-{part}-{device()}.json"


def write(
    out: Path, part: str, kind: str, settings: Mapping[str, Any], threads: int | None, results: Mapping[str, Any]
) -> Path:
    """Write a part's file, whole or not at all.

    Args:
        out: the folder.
        part: names the file.
        kind: which table it has in the documents.
        settings: of the part.
        threads: of each step or arm; None where the results say it.
        results: what was found.
    """
    path = place(out, part)
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"part": part, "kind": kind, **surroundings(threads), "settings": dict(settings), **results})
    return path


def surroundings(threads: int | None) -> dict[str, Any]:
    """Device, cores, threads, dtype and versions."""
    return {
        "device": device_name(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "dtype": pick_dtype("auto"),
        "system": sys.platform,
        "machine": platform.machine(),
        "versions": package_versions(),
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
