"""How many seeds a study needs, from the noise that a pilot study or a stated deviation shows."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peftprune.analysis.differences import Reached, tested
from peftprune.analysis.predictions import measure, predictions
from peftprune.errors import UsageError
from peftprune.stats import seeds_for
from peftprune.study.stored_study import StoredStudy


def needed_seeds(
    comparisons: int,
    detect: float | None,
    margin: float | None,
    pilot: str | Path | None,
    deviation: float | None,
    task: str,
) -> dict[str, Any]:
    """Returns the seeds that detect a difference, and that show equal methods equivalent within a margin, and why.

    The power is 0.8 at the level of the first step of Holm's procedure over so many comparisons. The noise is that of a
    `pilot`, a study's folder, pooled over its pairs with the first method in the primary metric of the task, or else of
    its first one; or that of a stated `deviation` between seeds of one method's score, which leaves out the noise of
    the examples. `seconds` are those of a step in the pilot. `seeds` is the larger number, None where only more
    examples help.

    Raises UsageError for values that are not above 0 or missing, and for a pilot without two seeds of a pair.
    """
    if detect is None and margin is None:
        raise UsageError.of("detect", None, "is missing", "Give --detect 0.01, --margin 0.01, or both")
    for name, value in (("detect", detect), ("margin", margin), ("deviation", deviation)):
        if value is not None and not 0 < value < math.inf:
            raise UsageError.of(name, value, "is not a number above 0", "Give 0.01, for example")
    if (pilot is None) == (deviation is None):
        cure = "Give --pilot FOLDER, a stored study, or --deviation, and only one of them"
        raise UsageError.of("pilot", pilot, "does not say alone how results vary", cure)
    found: dict[str, Any] = {"seconds": None, "n_examples": 2, "example_std": 0.0, "common": 1.0}
    if deviation is not None:
        found |= {"seed_std": math.sqrt(2) * deviation, "source": f"a deviation of {deviation:g} between seeds"}
    else:
        found |= _noise(StoredStudy.load(str(pilot)).snapshot(), task)
    noise = {name: found[name] for name in ("n_examples", "example_std", "common", "seed_std")}
    for name, size in (("detect", detect), ("margin", margin)):
        if size is not None:
            seeds = seeds_for(size, **noise, equivalence=name == "margin", alpha=0.05 / max(1, comparisons))
            found[name] = {"size": size, "seeds": int(seeds) if math.isfinite(seeds) else None}
    numbers = [found[name]["seeds"] for name in ("detect", "margin") if name in found]
    return found | {"seeds": None if None in numbers else max(numbers)}


def _noise(pilot: StoredStudy, task: str) -> dict[str, Any]:
    cell = next(pilot.only(task=task if task in pilot.tasks else None).cells())
    (name,), (budget,), metric, baseline = cell.tasks, cell.budgets, cell.metrics[0], cell.methods[0]
    what, stored = measure(cell, name, metric), predictions(cell)
    made = [tested(stored, m, baseline, what, Reached()) for m in cell.methods if m != baseline]
    tests = [test.found for test in made if test and len(test.seeds) > 1]
    if not tests:
        cure = "Train two methods with two seeds or more, or give --deviation"
        raise UsageError.of("pilot", str(pilot.path), "has no pair of methods with two seeds", cure)
    ledgers = [result["ledger"] for _, _, result in cell.finished()]
    steps = sum(ledger["steps"] for ledger in ledgers)
    examples = tests[0].n_examples
    return {
        "n_examples": examples,
        "example_std": _root_mean_square([t.example_std for t in tests]),
        "common": float(np.mean([t.common for t in tests])),
        "seed_std": _root_mean_square([t.seed_std for t in tests]),
        "seconds": sum(ledger["seconds"] for ledger in ledgers) / steps if steps else None,
        "source": f"{pilot.path} ({name}, {budget}: {metric} of {len(tests)} method pair(s) on {examples:,} examples)",
    }


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(float(np.mean(np.square(values))))


def needed_in_words(found: dict[str, Any]) -> str:
    """Returns `needed_seeds` as sentences."""
    parts = []
    for name, aim in (("detect", "to detect a difference of"), ("margin", "to show equal methods equivalent within")):
        if name in found:
            seeds = found[name]["seeds"]
            number = f"{seeds:,} seeds" if seeds else "more examples (no number of seeds suffices)"
            parts.append(f"{number} {aim} {found[name]['size']:g}")
    text = f"With the noise of {found['source']}, a power of 0.8 after Holm needs {' and '.join(parts)}."
    return text if found["example_std"] else f"{text} It is a lower bound: the noise of the examples is left out."
