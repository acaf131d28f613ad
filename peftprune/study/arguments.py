"""What `compare` is asked for, from all the forms in which it may be said."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peftprune.errors import UsageError
from peftprune.strategy.budget import Budget, parse_budget
from peftprune.tasks import Task, load_task

_SEEDS_END = 2**32
"""The generators below take no larger ones."""


def load_tasks(asked: str | Task | Sequence[str | Task], data_dir: str | Path | None) -> list[Task]:
    """Tasks by name, several names separated by commas, `Task` objects, or a sequence of all these.

    Raises:
        UsageError: for none, one that is neither, an unknown name, or two of one name.
    """
    names = [name for part in _parts("task", asked, (str, Task), "rte") for name in _names(part)]
    if not names or "" in names:
        raise UsageError.of("task", asked, "names no task", "Give rte, or rte,mrpc")
    tasks = [n if isinstance(n, Task) else load_task(n, data_dir=data_dir) for n in names]
    found = [t.name for t in tasks]
    twice = next((n for n in found if found.count(n) > 1), None)
    if twice is not None:
        raise UsageError.of("task", twice, "occurs twice", "Name each task once; give Task.from_files another name")
    return tasks


def _names(part: str | Task) -> list[Any]:
    return [name.strip() for name in part.split(",")] if isinstance(part, str) else [part]


def parse_budgets(budget: Budget | str | Sequence[Budget | str]) -> dict[str, Budget | Literal["paper"]]:
    """One or several budgets, by the label they have in tables.

    Raises:
        UsageError: for none, one that cannot be read, or two that are equal.
    """
    parsed = [parse_budget(b) for b in _parts("budget", budget, (str, Budget), "rank=8")]
    labels = [b if isinstance(b, str) else b.label for b in parsed]
    if not parsed:
        raise UsageError.of("budget", budget, "names no budget", "Give rank=8, or [Budget(rank=2), Budget(rank=8)]")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UsageError.of("budget", twice, "occurs twice", "Name each budget once")
    return dict(zip(labels, parsed, strict=True))


def parse_seeds(seeds: int | str | Sequence[int]) -> list[int]:
    """A number of seeds as 0, 1, ...; a sequence as it is; text as either: "3" is three seeds, "11,12" are these.

    Raises:
        UsageError: for none, negative, repeated or too large ones, or anything else.
    """
    given: Any = _from_text(seeds) if isinstance(seeds, str) else seeds
    if isinstance(given, bool) or not isinstance(given, int | Sequence):
        raise UsageError.of("seeds", seeds, "are neither a number nor a list", "Give 3, or [0, 1, 2]")
    found = list(range(given)) if isinstance(given, int) else list(given)
    if not found:
        raise UsageError.of("seeds", seeds, "leaves nothing to run", "Give at least 1")
    whole = all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s < _SEEDS_END for s in found)
    if not whole or len(set(found)) < len(found):
        raise UsageError.of("seeds", seeds, "are not distinct whole numbers from 0 below 2^32", "Give 3, or [0, 1, 2]")
    return found


def _from_text(text: str) -> int | list[int]:
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() for p in parts if p) or not any(parts):
        raise UsageError.of("seeds", text, "is neither a number nor a list of seeds", "Write 3, or 11,12")
    return int(parts[0]) if len(parts) == 1 else [int(p) for p in parts if p]


def parse_targets(targets: str | Sequence[str]) -> str | list[str]:
    """`"attention"`, `"all-linear"`, or names, in a sequence or separated by commas.

    Raises:
        UsageError: for anything else.
    """
    parts = _parts("target_modules", targets, (str,), "all-linear")
    if isinstance(targets, str) and targets in ("attention", "all-linear"):
        return targets
    names = [name.strip() for part in parts for name in part.split(",") if name.strip()]
    if not names:
        raise UsageError.of(
            "target_modules", targets, "names nothing", "Give attention, all-linear, or names of layers"
        )
    return names


def check_path(field: str, value: Any) -> None:
    """Refuse what is no path or name.

    Raises:
        UsageError: naming the field.
    """
    if value is not None and not isinstance(value, str | os.PathLike):
        raise UsageError.of(field, value, "is no name or path", "Give text")


def _parts(field: str, given: Any, kinds: tuple[type, ...], example: str) -> list[Any]:
    """One value or a sequence of them as a list, all of the wanted kinds."""
    if isinstance(given, kinds):
        return [given]
    parts = list(given) if isinstance(given, Sequence) and not isinstance(given, Mapping) else [given]
    odd = next((p for p in parts if not isinstance(p, kinds)), None)
    if odd is not None or (parts == [None]):
        raise UsageError.of(field, odd, f"is no {field.replace('_', ' ')}", f"Write {example}, for example")
    return parts
