"""A study compared with a plain script without peftprune, run once per seed.

The study runs between the two halves of the scripts, so that a machine that becomes slower or faster favours neither.
There may be fewer scripts than arms: each is taken at the scripts' median, so that other load during one of them has no
effect.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.commands import script, study
from benchmarks.speed.measure import described, difference
from benchmarks.speed.request import Request, spelled
from peftprune.comparison import Comparison

KIND = "plain"
WORKERS = 2
_COMMON = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3, "warmup_ratio": 0.06, "rank": 8, "scaling": 2.0}
"""Settings of both sides: the defaults of `peftprune compare`, which the script states explicitly."""


def plain(
    request: Request,
    task: str,
    targets: str,
    method: str,
    seeds: int,
    runs: int | None = None,
) -> dict[str, Any]:
    """Measures the wall-clock time and accuracy of both sides.

    Args:
        request: data and model.
        task: "mrpc" or "rte".
        targets: "attention" or "all-linear".
        method: "lora" or "adalora".
        seeds: arms of the study.
        runs: number of scripts, with the first seeds; None for as many as arms.
    """
    seeds = 2 if request.quick else seeds
    count = min(runs or seeds, seeds)
    # PEFT's AdaLoRA needs a step before the last one of its warm-up.
    both: dict[str, Any] = {"task": task, "epochs": 4 if request.quick else 1}
    options = request.command(
        **both, methods=method, seeds=seeds, target_modules=targets, budget="rank=8", workers=WORKERS, threads=1
    )
    both |= {"max_train_samples": 64, "max_eval_samples": 64} if request.quick else {}
    both |= {"data_dir": request.data_dir, "model": None if request.model == "minilm" else request.model}

    def scripts(chosen: range) -> list[dict[str, Any]]:
        return [script(spelled(**both, method=method, targets=targets, seed=s)) for s in chosen]

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "study"
        before = scripts(range(count // 2))
        seconds = study(output, options)
        theirs = before + scripts(range(count // 2, count))
        result = Comparison.load(output)
        if result.failures:
            raise RuntimeError(f"the study failed: {result.failures}")
        arms = result.runs()
        dtype, threads = result.request["dtype"], result.request["threads"]
    training = float(arms["seconds"].sum()) / WORKERS
    ours = arms["accuracy"].tolist()
    accuracies = [run["accuracy"] for run in theirs]
    return {
        "settings": {"task": task, "targets": targets, "method": method, "seeds": seeds, "scripts": count}
        | _COMMON
        | request.settings,
        "threads": threads,
        "study": {
            "seconds": seconds,
            "training": training,
            "workers": WORKERS,
            "threads": threads,
            "dtype": dtype,
            "accuracy": described(ours),
        },
        "script": {
            "seconds": [run["seconds"] for run in theirs],
            "training": [run["train_seconds"] for run in theirs],
            "threads": theirs[0]["threads"],
            "dtype": theirs[0]["dtype"],
            "accuracy": described(accuracies),
        },
        **ratios(seconds, training, theirs, seeds),
        "accuracy": difference(ours, accuracies),
    }


def ratios(seconds: float, training: float, scripts: list[dict[str, Any]], seeds: int) -> dict[str, float]:
    """Returns the study's time divided by that of one script per seed, for whole commands and for training alone."""
    return {
        "ratio": seconds / (seeds * median(run["seconds"] for run in scripts)),
        "training_ratio": training / (seeds * median(run["train_seconds"] for run in scripts)),
    }
