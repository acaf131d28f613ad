"""The cost of every method's decisions and signals: its steps compared with those of plain LoRA of the same shape.

Beside each arm runs its shadow: plain LoRA with the arm's current ranks, ties and dropped sites, on the same batches
and in the same phases. The difference between the two is the cost of the method's own computation.
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

KIND = "overhead"
_TOGETHER = (("adalora", "adalora-peft"),)
"""Methods that are also compared with each other."""
_GROUP = 4
"""Methods that take steps in turn; more would only need more memory."""
_LONGER = ("lorpa", "prilora", "lora-drop", *_TOGETHER[0])
"""Methods whose overhead is compared with a bound, for which few rounds are too noisy."""
_ROUNDS, _LONGER_ROUNDS, _SKIPPED = 44, 220, 2


def overhead(request: Request, methods: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures the step times of every method relative to its shadow's."""
    chosen = list(methods or (["lora", "prilora"] if request.quick else _deciding()))
    settings = {"task": "mrpc", "targets": "attention", "budget": "rank=8"} | request.settings
    rows: list[dict[str, Any]] = []
    versus: list[dict[str, Any]] = []
    for group in _groups(chosen):
        rounds, skipped = _rounds(group, request.quick)
        # About two passes over the data, so that methods that begin with a share of it soon finish that phase.
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
    rows.sort(key=lambda row: chosen.index(row["method"]))
    return {"settings": settings, "threads": 1, "rows": rows, "versus": versus}


def _rounds(group: Sequence[str], quick: bool) -> tuple[int, int]:
    """Returns how many rounds are measured, and how many are skipped before them."""
    if quick:
        return 6, 1
    return (_LONGER_ROUNDS if set(group) & set(_LONGER) else _ROUNDS), _SKIPPED


def _deciding() -> list[str]:
    """Returns all methods except baselines, which decide nothing, unless a method is compared with one."""
    compared_with = {other for _, other in _TOGETHER}
    return [name for name in names() if name in compared_with or not load(name).prepares_model]


def _measure(
    bench: Bench, methods: Sequence[str], rounds: int, skipped: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Returns seconds by round of arms and shadows, and the number of measured steps in which a decision had effect."""
    # One more step than is measured, since a turn ends where the next begins.
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
    """Returns methods in small groups; the first has those that are measured longer, or compared with each other."""
    longer = [m for m in methods if m in _LONGER]
    rest = [m for m in methods if m not in _LONGER]
    groups = [rest[i : i + _GROUP] for i in range(0, len(rest), _GROUP)]
    return [longer, *groups] if longer else groups
