"""The parts by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.speed import after_cut, growth, limit, overhead, parallel, plain, start
from benchmarks.speed.request import Request


@dataclass(frozen=True)
class Part:
    """One file of results.

    Attributes:
        kind: the name of its table.
        measure: returns the results, with the keys "settings" and "threads" among them.
    """

    kind: str
    measure: Callable[[Request], dict[str, Any]]


def _plain(task: str, targets: str, method: str, seeds: int, **fewer: int) -> Part:
    return Part(plain.KIND, partial(plain.plain, task=task, targets=targets, method=method, seeds=seeds, **fewer))


# The quickest first, so that most results exist early.
PARTS = {
    "limit": Part(limit.KIND, limit.limit),
    "after-cut": Part(after_cut.KIND, after_cut.after_cut),
    "start": Part(start.KIND, start.start),
    "growth": Part(growth.KIND, growth.growth),
    "plain-adalora": _plain("mrpc", "attention", "adalora", 2),
    "parallel": Part(parallel.KIND, parallel.parallel),
    "plain-mrpc": _plain("mrpc", "attention", "lora", 6),
    "plain-rte": _plain("rte", "all-linear", "lora", 6, runs=3),
    "overhead": Part(overhead.KIND, overhead.overhead),
}
