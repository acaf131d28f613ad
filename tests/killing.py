"""Helpers of the tests that kill: what an arm left, a study's work, a process that forks children."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import peftprune
from peftprune.study.execution.backend import Backend
from peftprune.study.execution.work import Work
from peftprune.study.store import ArmFolder
from tests.helpers import DEFAULTS, classification_task

CLOCKS = {"seconds", "phase_seconds", "evaluation_seconds", "total_time", "train_time", "created_at"}
CLOCKS |= {"peak_memory_bytes"}
"""Fields that a clock decides, and the memory of the process."""


def timeless(value: Any) -> Any:
    """JSON values without what differs between two equal runs."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in CLOCKS}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def left_by(folder: ArmFolder) -> dict[str, Any]:
    """Everything that an arm has to show, to the bit; see `tests.helpers.same`."""
    (adapter,) = folder.adapter.glob("*.safetensors")
    return {
        "adapter": load_file(adapter),
        "predictions": folder.predictions.read_bytes(),
        "allocation": folder.allocation(),
        "history": timeless(folder.history()),
        "result": timeless(folder.result()),
        "config": folder.config(),
    }


def left_in(study: Path) -> dict[str, dict[str, Any]]:
    """`left_by` for all arms of a study."""
    return {arm.name: left_by(ArmFolder(arm)) for arm in sorted((study / "arms").iterdir())}


def planned(methods: Any, study: Path, model: Path, **settings: Any) -> Work:
    """The work of a study, of which nothing is trained yet."""
    found: list[Work] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "run", lambda self, work, reporter: found.append(work))
        given = {"budget": "rank=2,steps=6", "target_modules": "attention", "threads": 1, "model": model}
        peftprune.compare(methods, classification_task(), output_dir=study, **(DEFAULTS | given | settings))
    return found[0]


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values: self.events.append((name, *values))

    @property
    def names(self) -> list[str]:
        return [event[0] for event in self.events if event[0] != "step"]


def serve(path: Path) -> None:
    """For every line on standard input: fork a child that trains the packed work, and wait for its end.

    Every event is a line of JSON, the child's number the first. Nothing is trained here, so that forking is safe.
    """
    from peftprune.study.execution.process import EventWriter, unpack

    packed = path.read_bytes()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            writer = EventWriter(sys.stdout)
            writer._write("child", os.getpid())
            unpack(packed).run(writer)  # type: ignore[arg-type]
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps(["ended", os.waitstatus_to_exitcode(status)]), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
