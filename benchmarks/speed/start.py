"""Seconds from a command to its first optimizer step, part by part, relative to those of the plain script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.speed.commands import script
from benchmarks.speed.measure import compared
from benchmarks.speed.plain import WORKERS
from benchmarks.speed.request import Request, spelled

KIND = "start"
_LAST = "first step"


def start(request: Request) -> dict[str, Any]:
    """Runs study and script in turn, each up to its first step.

    Returns:
        `parts`: the median seconds of each part of the study's start, divided by the script's median seconds up to its
        first step; `start`: the ratios of the whole starts, see `compared`.
    """
    rounds = 1 if request.quick else 5
    given = {"task": "mrpc", "epochs": 1, "max_train_samples": 64 if request.quick else None}
    options = request.command(**given, methods="lora", seeds=WORKERS, budget="rank=8", workers=WORKERS, threads=1)
    theirs = {"data_dir": request.data_dir, "model": None if request.model == "minilm" else request.model}
    theirs |= {"max_steps": 1, "max_eval_samples": 32}
    ours, scripts = [], []
    for _ in range(rounds):
        scripts.append(script(spelled(**given, **theirs))["first_step_seconds"])
        ours.append(_first_step(options))
    whole = median(scripts)
    parts = {name: median(marks[name] for marks in ours) / whole for name in ours[0]}
    return {
        "settings": {"task": "mrpc", "method": "lora", "rounds": rounds} | request.settings,
        "threads": 1,
        "parts": parts,
        "start": compared([sum(marks.values()) for marks in ours], scripts),
    }


def _first_step(options: list[str]) -> dict[str, float]:
    """Runs `peftprune compare` up to its first step and returns the seconds of each part."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __name__, *options, "--output-dir", str(Path(folder) / "study")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Runs the command in this process and prints the seconds of each part when the first step is done."""
    ended, seconds = psutil.Process().create_time(), dict[str, float]()

    def end(part: str) -> None:
        nonlocal ended
        if part not in seconds:
            seconds[part], ended = time.time() - ended, time.time()

    from peftprune import comparison

    end("interpreter and imports")
    from peftprune.cli.app import app
    from peftprune.study.progress import Reporter
    from peftprune.study.task_setup import Setup

    inputs = Setup.inputs

    class Timed(Reporter):
        def __init__(self, *args: Any, **options: Any) -> None:
            end("model, data and plan")
            super().__init__(*args, **options)

        def step(self, done: int, total: int, phase: str) -> None:
            end(_LAST)
            print(json.dumps(seconds), flush=True)
            # Its workers end with it.
            os._exit(0)

    def tokenised(self: Setup, *args: Any) -> Any:
        end("worker start")
        found = inputs(self, *args)
        end("tokenising")
        return found

    comparison.Reporter, Setup.inputs = Timed, tokenised  # type: ignore[misc, method-assign]
    app(["compare", *sys.argv[1:]])


if __name__ == "__main__":
    main()
