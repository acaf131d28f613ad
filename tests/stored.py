"""Stored studies that no one trained, for what only reads them: any number of methods, layers, seeds and failures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from peftprune.comparison import Comparison
from peftprune.files import write_json, write_jsonl
from peftprune.study import arm_files
from peftprune.study.store import StudyFolder
from peftprune.training.settings import TrainingSettings

ENCODER = ("attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense")
ENCODER_DECODER = tuple(
    f"{stack}.{part}.{name}"
    for stack, part in (("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "encoder_attn"))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj")
)
EXAMPLES = 40


def store(
    folder: Path,
    *,
    methods: Sequence[str] = ("plain", "cut", "sparse", "shared"),
    tasks: Sequence[str] = ("rte",),
    budgets: Sequence[str] = ("rank=8",),
    seeds: Sequence[int] = (0, 1),
    layers: int = 6,
    kinds: Sequence[str] = ENCODER,
    failed: Sequence[tuple[str, int]] = (),
) -> Comparison:
    """Write a study whose methods behave as the first letters of their names say.

    p(lain), c(ut), sp(arse), sh(ared), flat (one answer for every example), top (every answer right).

    Args:
        folder: an empty one.
        failed: (method, seed) of arms that ended in an error.
    """
    study = StudyFolder(folder)
    study.prepare()
    arms = [
        {"task": t, "budget": b, "label": m, "seed": s, "hash": f"{i:010x}"}
        for i, (s, t, b, m) in enumerate(product(seeds, tasks, budgets, methods))
    ]
    for arm in arms:
        target = study.arm(arm["label"], arm["seed"], arm["hash"])
        if (arm["label"], arm["seed"]) in failed:
            target.record_error(ArithmeticError("loss: nan & <inf>"), arm["label"], arm["seed"])
        else:
            _write_arm(target, arm, layers, kinds)
    study.write_request(
        {
            "model": "a-model",
            "methods": [{"label": m, "text": m} for m in methods],
            "tasks": [
                {
                    "name": t,
                    "kind": "classification",
                    "metrics": ["accuracy", "f1"],
                    "evaluation_split": "official dev",
                    "train_examples": 320,
                    "evaluation_examples": {"dev": EXAMPLES},
                    "source": "generated",
                    "named": True,
                    "files": {},
                }
                for t in tasks
            ],
            "budgets": [{"label": b, "rank": int(b.removeprefix("rank="))} for b in budgets],
            "seeds": list(seeds),
            "target_modules": "all-linear",
            "data_dir": None,
            "given": {"epochs": 2.0},
            "settings": TrainingSettings(epochs=2.0).as_dict(),
            "sites": layers * len(kinds),
            "dtype": "float32",
            "threads": 1,
            "versions": {"python": "3.11", "peftprune": "0.1.0"},
            "hardware": {"device": "cpu", "machine": "x86_64", "cores": 2, "system": "linux"},
            "arms": arms,
        }
    )
    return Comparison.load(folder)


def empty_result() -> dict[str, Any]:
    """What a valid `result.json` holds at least."""
    ledger: dict[str, Any] = dict.fromkeys(arm_files.RESULT["ledger"], 1) | {"phase_seconds": {}}
    empty: dict[str, Any] = {"metrics": {}, "allocation": [], "phases": [], "settings": {}, "exemption": None}
    return empty | {"ledger": ledger, "budget": {"params": 1, "total_steps": 1}}


def _write_arm(target: Any, arm: dict[str, Any], layers: int, kinds: Sequence[str]) -> None:
    rng = random.Random(repr(sorted(arm.items())))
    rank, label, steps = int(arm["budget"].removeprefix("rank=")), arm["label"], 20
    names = [(f"model.{layer}.{kind}", layer, kind) for layer, kind in product(range(layers), kinds)]
    start = {n: 4 * rank if label.startswith("c") else rank for n, _, _ in names}
    final = {n: rng.randint(0, 2 * rank) if label.startswith("c") else rank for n in start}
    groups: dict[str, list[str]] = {n: [] for n in start}
    if label.startswith("sh"):
        for kind in kinds:
            together = [n for n, _, k in names if k == kind and rng.random() < 0.5]
            groups.update({n: [m for m in together if m != n] for n in together if len(together) > 1})
    density = {n: rng.uniform(0.6, 0.9) if label.startswith("sp") else 1.0 for n in start}
    changed = any(label.startswith(x) for x in ("c", "sh", "sp"))

    def rows(ranks: dict[str, int], end: bool) -> dict[str, Any]:
        return {
            n: {
                "rank": ranks[n],
                "density": density[n] if end and label.startswith("sp") and ranks[n] else None,
                "shared_with": groups[n] if end else [],
                "components": sorted(rng.sample(range(start[n]), min(ranks[n], start[n])))
                if end and label.startswith("c")
                else None,
            }
            for n in ranks
        }

    trace = [{"step": 0, "phase": "first", "reason": "initial ranks", "scores": {}, "sites": rows(start, False)}]
    if changed:
        scores = {n: rng.random() for n in start}
        trace.append({"step": 8, "phase": "first", "reason": "decided", "scores": scores, "sites": rows(final, True)})
    allocation = [
        {
            "site": n,
            "layer": layer,
            "kind": kind,
            "rank": final[n],
            "density": density[n] if final[n] else None,
            "shared_with": groups[n],
        }
        for n, layer, kind in names
    ]
    truth = random.Random(arm["task"])
    labels = [truth.randint(0, 1) for _ in range(EXAMPLES)]
    guesses = [x if rng.random() < 0.75 else 1 - x for x in labels]
    if label.startswith(("flat", "top")):
        guesses = [1] * EXAMPLES if label.startswith("flat") else labels
    accuracy = sum(a == b for a, b in zip(labels, guesses, strict=True)) / EXAMPLES
    hits = sum(a and b for a, b in zip(labels, guesses, strict=True))
    params = 64 * sum(final.values())
    target.path.mkdir(parents=True)
    pd.DataFrame(
        {
            "split": "dev",
            "index": range(EXAMPLES),
            "label": labels,
            "prediction": guesses,
            "logits": [[0.0, 0.0]] * EXAMPLES,
        }
    ).to_parquet(target.predictions)
    write_jsonl(
        target.path / "history.jsonl",
        [
            {
                "loss": 0.7 if label == "p-still" else 0.7 / (1 + s / 10) + rng.random() / 20,
                "learning_rate": 1e-3,
                "step": s,
            }
            for s in range(2, steps + 1, 2)
        ],
    )
    write_jsonl(target.path / "allocation.jsonl", trace)
    write_json(target.path / "config.json", {"method": label, "options": {}})
    write_json(
        target.path / "result.json",
        {
            "schema": 1,
            "label": label,
            "method": label,
            "seed": arm["seed"],
            "status": "done",
            "exemption": "cannot meet a budget" if label.startswith("x") else None,
            "metrics": {"accuracy": accuracy, "f1": 2 * hits / max(1, sum(labels) + sum(guesses))},
            "budget": {"params": 64 * rank * len(names), "count": "stored", "total_steps": steps, "paper": False},
            "settings": TrainingSettings(epochs=2.0).as_dict(),
            "phases": [{"name": "first", "start": 0, "stop": 8}, {"name": "second", "start": 8, "stop": steps}],
            "ledger": {
                "peak_params": max(params, 64 * sum(start.values())),
                "final_params": 0 if label == "x-head" else params,
                "nonzero_params": int(params * 0.9),
                "unique_params": params,
                "expanded_params": params,
                "head_params": 770,
                "optimizer_bytes": 8 * params,
                "adapter_bytes": 4 * params,
                "steps": steps,
                "samples": 640,
                "tokens": 20_000,
                "forward_only_samples": 0,
                "phase_seconds": {"first": rng.uniform(1, 2), "second": rng.uniform(2, 3)},
                "evaluation_seconds": rng.uniform(0.1, 0.3),
                "seconds": 4.5,
                "base_flops": 1.5e12,
                "adapter_flops": 2.5e10,
                "flops": 1.525e12,
                "peak_memory_bytes": 1_000_000,
            },
            "allocation": allocation,
        },
    )
