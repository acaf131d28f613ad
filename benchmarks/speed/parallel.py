"""Throughput of arms with different workers and threads, and whether their results are identical."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.commands import study
from benchmarks.speed.measure import compared
from benchmarks.speed.request import Request
from peftprune.comparison import Comparison

KIND = "parallel"
_RAY = "ray"


def parallel(request: Request) -> dict[str, Any]:
    """Measures the same small study with several workers, relative to one worker with two threads."""
    steps, turns = (3, 1) if request.quick else (30, 2)
    ways = _ways()
    skipped = {}
    if importlib.util.find_spec("ray") is None:
        skipped[_RAY] = 'ray is not installed (pip install "peftprune[ray]")'
        del ways[_RAY]
    common = request.command(
        task="mrpc", methods="lora,prilora", seeds=2, budget=f"rank=8,steps={steps}", target_modules="attention"
    )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(turns):
            for way in list(ways)[:: -1 if turn % 2 else 1]:
                folder = Path(name) / f"{way}-{turn}"
                seconds[way].append(study(folder, [*common, *ways[way]]))
                results[way] = outcome(folder)
    first = next(iter(ways))
    rows = []
    for way, options in ways.items():
        # The inverse of the time: arms per hour.
        found = compared(seconds[first], seconds[way])
        rows.append({"way": way, "options": " ".join(options), **found})
    settings = {"task": "mrpc", "targets": "attention", "arms": 4, "steps": steps, "turns": turns}
    return {"settings": settings, "threads": None, "rows": rows, "identical": _same(results), "skipped": skipped}


def _ways() -> dict[str, list[str]]:
    """Returns options of `peftprune compare` by name; the others are compared with the first."""
    if torch.cuda.is_available():
        # The arms share the GPU, or are spread over several.
        return {f"{n}x1": ["--workers", str(n), "--threads", "1"] for n in (1, 2, 4)} | {
            _RAY: ["--backend", "ray", "--address", "local", "--threads", "1", "--gpus", "0.5"]
        }
    return {
        "1x2": ["--workers", "1", "--threads", "2"],
        "2x1": ["--workers", "2", "--threads", "1"],
        "1x1": ["--workers", "1", "--threads", "1"],
        _RAY: ["--backend", "ray", "--address", "local", "--threads", "1"],
    }


def outcome(folder: Path) -> dict[str, Any]:
    """Returns each arm's metrics and a checksum of its adapter's tensors.

    Raises:
        RuntimeError: an arm failed.
    """
    result = Comparison.load(folder)
    if result.failures:
        raise RuntimeError(f"the study in {folder} failed: {result.failures}")
    found = {}
    for key, arm in result.arms():
        done = arm.result()
        assert done is not None
        (weights,) = arm.adapter.glob("*.safetensors")
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        found[json.dumps([key["method"], key["seed"]])] = {"metrics": done["metrics"], "adapter": digest}
    return found


def _same(results: Mapping[str, Any]) -> dict[str, bool]:
    """Returns whether the results with one thread per arm are bit-identical to those of one worker."""
    others = [way for way in results if way not in ("1x1", "1x2")]
    return {way: results[way] == results["1x1"] for way in others}
