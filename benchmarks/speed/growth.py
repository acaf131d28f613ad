"""Growth of step times with rank, adapted layers and depth, and of study times with the number of arms."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import Bench
from benchmarks.speed.commands import study
from benchmarks.speed.measure import compared
from benchmarks.speed.request import Request
from benchmarks.speed.turns import in_rounds
from peftprune.models.load import load_model

KIND = "growth"
_RANKS, _DEPTHS, _ARMS = (2, 8, 32, 128), (2, 6, 12), (1, 2, 4)


def growth(request: Request) -> dict[str, Any]:
    """Measures step times relative to the smallest of each series of sizes, and study times relative to one arm."""
    rounds = 3 if request.quick else 40
    ranks = _RANKS[:2] if request.quick else _RANKS
    depths = _DEPTHS[:2] if request.quick else _DEPTHS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def bench(targets: str, model: str | Path) -> Bench:
            return Bench("mrpc", request.data_dir, targets, folder, model, settings=request.settings)

        attention = bench("attention", request.model)
        cells = {f"rank {r}": (attention, r) for r in ranks}
        cells["all-linear"] = (bench("all-linear", request.model), 8)
        cells |= {f"{n} layers": (bench("attention", _of_depth(request.model, n, folder)), 8) for n in depths}
        turns = []
        for label, (where, rank) in cells.items():
            plan = where.plan("lora", f"rank={rank},steps={rounds + 3}")
            turns.append(where.build(label, plan).turn)
        seconds = in_rounds(turns, rounds)
        studies = _studies(request, folder)
    series = {
        "rank": {str(r): f"rank {r}" for r in ranks},
        "adapted layers": {"query, value": "rank 8", "all-linear": "all-linear"},
        "blocks": {str(n): f"{n} layers" for n in depths},
    }
    rows = []
    for what, sizes in series.items():
        first = next(iter(sizes.values()))
        for size, label in sizes.items():
            rows.append({"what": what, "size": size, **compared(seconds[label], seconds[first])})
    settings = {"task": "mrpc", "rounds": rounds, "study_steps": _steps(request)}
    return {"settings": settings | request.settings, "threads": 1, "rows": rows + studies}


def _of_depth(model: str | Path, layers: int, folder: Path) -> Path:
    """Saves the model with another number of blocks and random weights, with its tokenizer; returns the folder."""
    from transformers import AutoConfig, AutoModel

    loaded = load_model(model, 2)
    config = AutoConfig.from_pretrained(loaded.source, num_hidden_layers=layers)
    path = folder / f"{layers}-layers"
    AutoModel.from_config(config).save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return path


def _steps(request: Request) -> int:
    return 3 if request.quick else 20


def _studies(request: Request, folder: Path) -> list[dict[str, Any]]:
    """Measures whole studies of 1, 2, ... arms, the small ones both before and after the large ones."""
    counts = _ARMS[:2] if request.quick else _ARMS
    seconds: dict[int, list[float]] = {n: [] for n in counts}
    for turn, order in enumerate((counts, counts[::-1])):
        for n in order:
            options = request.command(
                task="mrpc",
                methods="lora",
                seeds=n,
                target_modules="attention",
                threads=1,
                budget=f"rank=8,steps={_steps(request)}",
            )
            seconds[n].append(study(folder / f"study-{n}-{turn}", options))
    return [{"what": "arms of a study", "size": str(n), **compared(seconds[n], seconds[counts[0]])} for n in counts]
