import math
import shlex
from collections.abc import Mapping
from typing import Any


def command(request: Mapping[str, Any]) -> str:
    """Returns the `peftprune compare` command of a stored study, from the contents of its `study.json`.

    It is empty if no single command can express the study: a method or task exists only as a Python object, several
    tasks are read from the user's own files, or the study grew by calls that each left something out.
    """
    # In a study in rounds, the first seed of every method shows whether anything was left out.
    rounds, seeds = request.get("rounds"), request["seeds"]
    first = [a for a in request["arms"] if not rounds or a["seed"] == seeds[0]]
    whole = math.prod(len(request[part]) for part in ("methods", "tasks", "budgets")) * (1 if rounds else len(seeds))
    tasks, files = request["tasks"], [t["files"] for t in request["tasks"] if t["files"]]
    if any(not m["text"] for m in request["methods"]) or (files and len(tasks) > 1) or len(first) != whole:
        return ""
    if not files and not all(t["named"] for t in tasks):
        return ""
    options: list[tuple[str, Any]] = [*files[0].items()] if files else [("task", ",".join(t["name"] for t in tasks))]
    targets = request["target_modules"]
    options += [
        ("methods", ",".join(m["text"] for m in request["methods"])),
        ("model", request["model"]),
        *(("budget", b["label"]) for b in request["budgets"]),
        ("seeds", f"{rounds['seeds'][0]}..{rounds['seeds'][-1]}" if rounds else _seeds(seeds)),
        ("target_modules", targets if isinstance(targets, str) else ",".join(targets)),
        ("data_dir", request["data_dir"]),
        *request["given"].items(),
        *_tuning((request.get("tuning") or {}).get("asked")),
        ("margin", request.get("margin")),
        # On a CPU the number of threads changes the last bits of results, and its default depends on the machine.
        ("threads", request.get("threads") if request["hardware"]["device"] == "cpu" else None),
    ]
    return shlex.join(["peftprune", "compare", *(part for name, value in options for part in _option(name, value))])


def _tuning(asked: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """Returns the options of the search that chose a study's settings."""
    if asked is None:
        return []
    knobs = [f"{label}.{k['option']}={','.join(map(repr, k['values']))}" for label, k in asked["knobs"].items()]
    rates = ",".join(map(repr, asked["learning_rate"]))
    options = [("tune", text) for text in (f"learning_rate={rates}", *knobs)]
    seeds = ",".join(map(str, asked["seeds"])) + ","
    return [*options, ("tuning_seeds", seeds), *((name, asked.get(name)) for name in ("refit", "tuning"))]


def _option(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _seeds(seeds: list[int]) -> str:
    """Returns the seeds as `parse_seeds` reads them: a number for 0, 1, ..., else a list; a list of one ends in ","."""
    if seeds == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + "," * (len(seeds) == 1)
