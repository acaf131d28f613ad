"""What every method's decisions and signals cost: its steps against those of plain LoRA of the same shape.

Beside each arm runs its shadow: plain LoRA that always has the ranks, ties and dropped sites that the arm has at that
moment, on the same batches and in the same phases. What is left between the two is what the method does besides.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.arms import Bench, Built, Shadow, plain, reshapes
from benchmarks.speed.measure import compared
from benchmarks.speed.request import Request
from benchmarks.speed.turns import one_round, started
from peftprune.methods.registry import load, names
from peftprune.strategy.baseline import Baseline

KIND = "overhead"
_TOGETHER = (("adalora", "adalora-peft"),)
"""Methods that are compared with each other too."""
_GROUP = 4
"""Methods that take turns with each other; more would only need more memory."""
_LONGER = ("lorpa", "prilora", "lora-drop", *_TOGETHER[0])
"""Methods whose overhead is held against a bound, for which few rounds are too noisy."""
_ROUNDS, _LONGER_ROUNDS, _SKIPPED = 44, 220, 2


def overhead(request: Request, methods: Sequence[str] | None = None) -> dict[str, Any]:
    """Step times of every method relative to its shadow's."""
    asked = list(methods or (["lora", "prilora"] if request.quick else _deciding()))
    settings = {"task": "mrpc", "targets": "attention", "budget": "rank=8"} | request.settings
    rows: list[dict[str, Any]] = []
    versus: list[dict[str, Any]] = []
    for group in _groups(asked):
        rounds, skipped = _rounds(group, request.quick)
        # About two passes over the data, so that methods which begin with a share of it are soon through with that.
        options = {"max_train_samples": 16 * rounds} | request.settings
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench("mrpc", request.data_dir, "attention", Path(folder), request.model, settings=options)
            seconds, events = _measure(bench, group, rounds, skipped)
        for method in group:
            found = compared(seconds[method], seconds[_shadow_name(method)])
            rows.append({"method": method, **found, "events": events[method]})
        for ours, other in _TOGETHER:
            if {ours, other} <= set(group):
                versus.append({"method": ours, "against": other, **compared(seconds[ours], seconds[other])})
    rows.sort(key=lambda row: asked.index(row["method"]))
    return {"settings": settings, "threads": 1, "rows": rows, "versus": versus}


def _rounds(group: Sequence[str], quick: bool) -> tuple[int, int]:
    """How many are measured, and how many before them are not."""
    if quick:
        return 6, 1
    return (_LONGER_ROUNDS if set(group) & set(_LONGER) else _ROUNDS), _SKIPPED


def _deciding() -> list[str]:
    """All methods but baselines, which decide nothing, unless another one is compared with them."""
    compared_with = {other for _, other in _TOGETHER}
    return [name for name in names() if name in compared_with or not issubclass(load(name), Baseline)]


def _measure(
    bench: Bench, methods: Sequence[str], rounds: int, skipped: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds by round of arms and shadows, and how many of the measured steps changed adapters by a decision."""
    # One step more than is measured, since a turn ends where the next begins.
    budget = f"rank=8,steps={rounds + skipped + 1}"
    arms: dict[str, Built] = {}
    shadows: list[Shadow] = []
    for method in methods:
        plan = bench.plan(method, budget)
        name = _shadow_name(method)
        arms[method], arms[name] = bench.build(method, plan), bench.build(name, plain(plan))
        if reshapes(plan):
            shadows.append(Shadow(arms[method], arms[name]))
    turns = [arm.turn for arm in arms.values()]
    rng = random.Random(0)
    found: list[dict[str, float]] = []
    with started(turns):
        for _ in range(rounds + skipped):
            found.append(one_round(turns, rng))
            for shadow in shadows:
                shadow.follow()
        events = {m: sum(row["step"] > skipped for row in arms[m].trainer.pruning.trace.rows) for m in methods}
    return {name: [row[name] for row in found[skipped:]] for name in arms}, events


def _shadow_name(method: str) -> str:
    return f"lora beside {method}"


def _groups(methods: Sequence[str]) -> list[list[str]]:
    """Methods in groups of a few; those that are measured longer, and compared with each other, in one group."""
    longer = [m for m in methods if m in _LONGER]
    rest = [m for m in methods if m not in _LONGER]
    groups = [rest[i : i + _GROUP] for i in range(0, len(rest), _GROUP)]
    return [longer, *groups] if longer else groups
