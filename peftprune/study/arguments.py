"""Parses and validates the arguments of `compare`, which may be text, objects or sequences."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from peftprune.errors import UsageError
from peftprune.stats.metrics import check_metrics
from peftprune.strategy.budget import Budget, parse_budget
from peftprune.tasks import Task, load_task

Workers = int | Literal["auto"]
_SEEDS_END = 2**32
"""The random generators accept seeds below this."""
_MOST_ARMS = 1_000_000
"""Arms of one study, which are all planned before the first is trained."""
_ARMS_A_DAY = 86_400
"""One a second, which is more than any machine trains."""


def load_tasks(task: str | Task | Sequence[str | Task], data_dir: str | Path | None) -> list[Task]:
    """Loads tasks, given as names, several names separated by commas, `Task` objects, or a sequence of these.

    Raises UsageError for no task, a value of another type, an unknown name, two tasks of the same name, or metrics
    that do not fit their task.
    """
    parts = _as_list("task", task, (str, Task), "rte")
    named = [n for p in parts for n in ([p] if isinstance(p, Task) else map(str.strip, p.split(",")))]
    if not named or "" in named:
        raise UsageError.of("task", task, "names no task", "Give rte, or rte,mrpc")
    tasks = [n if isinstance(n, Task) else load_task(n, data_dir=data_dir) for n in named]
    _check_distinct("task", [t.name for t in tasks], "Name each task once; give Task.from_files another name")
    for loaded in tasks:
        check_metrics(loaded.metrics, loaded.kind, None if loaded.label_names is None else loaded.num_labels)
    return tasks


def parse_budgets(budget: Budget | str | Sequence[Budget | str]) -> dict[str, Budget | Literal["paper"]]:
    """Returns budgets by their label in tables. Raises UsageError for no, an unreadable, or a repeated budget."""
    parsed = [parse_budget(b) for b in _as_list("budget", budget, (str, Budget), "rank=8")]
    labels = [b if isinstance(b, str) else b.label for b in parsed]
    if not parsed:
        raise UsageError.of("budget", budget, "names no budget", "Give rank=8, or [Budget(rank=2), Budget(rank=8)]")
    _check_distinct("budget", labels, "Name each budget once")
    return dict(zip(labels, parsed, strict=True))


def parse_seeds(seeds: int | str | Sequence[int]) -> list[int]:
    """Returns the seeds: 0, 1, ... for a number of seeds, or a sequence as it is. Text may be either: "3" or "11,12".

    Raises UsageError for no seed, too many, repeated seeds, or seeds that are not whole numbers in [0, 2^32).
    """
    value: Any = _seeds_from_text(seeds) if isinstance(seeds, str) else seeds
    if isinstance(value, bool | bytes) or not isinstance(value, int | Sequence):
        raise UsageError.of("seeds", seeds, "are neither a number nor a list", "Give 3, or [0, 1, 2]")
    found = list(islice(range(value) if isinstance(value, int) else value, _MOST_ARMS + 1))
    check_arms("seeds", seeds, value if isinstance(value, int) else len(found))
    if not found:
        raise UsageError.of("seeds", seeds, "leaves nothing to run", "Give at least 1")
    whole = all(isinstance(s, int) and not isinstance(s, bool) and 0 <= s < _SEEDS_END for s in found)
    if not whole or len(set(found)) < len(found):
        raise UsageError.of("seeds", seeds, "are not distinct whole numbers from 0 below 2^32", "Give 3, or [0, 1, 2]")
    return found


def parse_rounds(seeds: Any) -> list[int]:
    """Returns the numbers of seeds after which a study in rounds is looked at, of "3..12"; empty for other seeds.

    They lie between the ends in steps of a constant ratio near 1.6, rounded: 3, 5, 8, 12. Raises UsageError for ends
    that are not whole numbers in ascending order, from 2.
    """
    if not isinstance(seeds, str) or ".." not in seeds:
        return []
    found = re.fullmatch(r"\s*([0-9]{1,7})\s*\.\.\s*([0-9]{1,7})\s*", seeds)
    low, high = map(int, found.groups()) if found else (0, 0)
    if not 2 <= low < high:
        raise UsageError.of("seeds", seeds, "does not name two numbers of seeds", "Write 3..12, for example")
    steps = max(1, round(math.log(high / low, 1.6)))
    return sorted({round(low * (high / low) ** (i / steps)) for i in range(steps + 1)})


def _seeds_from_text(text: str) -> int | list[int]:
    parts = [p.strip() for p in text.split(",")]
    # Python reads no longer numbers, and no seed has as many digits.
    if not all(p.isdecimal() and len(p) < 4_000 for p in parts if p) or not any(parts):
        raise UsageError.of("seeds", text, "is neither a number nor a list of seeds", "Write 3, or 11,12")
    return int(parts[0]) if len(parts) == 1 else [int(p) for p in parts if p]


def check_arms(field: str, value: object, arms: int) -> None:
    """Raises UsageError, which names the field and its value, for more arms than a study can have."""
    if arms > _MOST_ARMS:
        problem = f"make at least {arms:,} arms, {arms // _ARMS_A_DAY:,} days at one a second"
        raise UsageError.of(field, value, problem, f"Name fewer: a study has at most {_MOST_ARMS:,} arms")


def parse_targets(targets: str | Sequence[str]) -> str | list[str]:
    """Returns "attention", "all-linear", or a list of module names, which may be separated by commas.

    Raises UsageError for any other value.
    """
    parts = _as_list("target_modules", targets, (str,), "all-linear")
    if isinstance(targets, str) and targets in ("attention", "all-linear"):
        return targets
    if not (names := [name.strip() for part in parts for name in part.split(",") if name.strip()]):
        cure = "Give attention, all-linear, or names of layers"
        raise UsageError.of("target_modules", targets, "names nothing", cure)
    return names


def parse_workers(workers: Workers | str) -> Workers:
    """Returns "auto" or a number of processes, which may be text. Raises UsageError for other values and below 1."""
    if workers == "auto":
        return "auto"
    count = int(workers) if isinstance(workers, str) and workers.isdecimal() and len(workers) < 10 else workers
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError.of("workers", workers, "is not a number of processes", 'Give 1 or more, or "auto"')
    return count


def parse_margin(margin: float | str | Mapping[str, float]) -> dict[str, float]:
    """Returns margins by metric, or one by "" for every metric: of a number, a mapping, or text ("accuracy=0.01").

    Raises UsageError for any other value, and for margins that are not finite numbers above 0.
    """
    cure = "Give 0.01, or accuracy=0.01,matthews=0.02"
    found: Any = margin if isinstance(margin, Mapping) else {"": margin}
    if isinstance(margin, str):
        parts = [part.rpartition("=") for part in margin.split(",")]
        names = [name.strip() for name, _, _ in parts]
        if len(set(names)) < len(parts) or ("" in names and (len(parts) > 1 or "=" in margin)):
            raise UsageError.of("margin", margin, "does not name one margin for each metric", cure)
        found = {name: text for name, (_, _, text) in zip(names, parts, strict=True)}
    checked = {}
    for name, value in found.items():
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not isinstance(name, str) or not 0 < number < math.inf:
            raise UsageError.of("margin", value, "is not a number above 0", cure)
        checked[name] = number
    if not checked:
        raise UsageError.of("margin", margin, "names no metric", cure)
    return checked


def margin_text(margins: Mapping[str, float]) -> str:
    """Returns margins as `parse_margin` reads them from text."""
    return ",".join(f"{name}={value!r}" if name else repr(value) for name, value in margins.items())


def _as_list(field: str, value: Any, kinds: tuple[type, ...], example: str) -> list[Any]:
    """Returns one value or a sequence of values as a list, and checks their types."""
    if isinstance(value, kinds):
        return [value]
    parts = value if isinstance(value, Sequence) and not isinstance(value, Mapping) else [value]
    for part in parts:
        if not isinstance(part, kinds):
            raise UsageError.of(field, part, "has the wrong type", f"Write {example}, for example")
    return list(parts)


def _check_distinct(field: str, labels: Sequence[str], cure: str) -> None:
    if (repeated := next((label for label in labels if labels.count(label) > 1), None)) is not None:
        raise UsageError.of(field, repeated, "occurs twice", cure)
