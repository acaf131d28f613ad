"""Choosing one finished arm of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftprune.analysis.predictions import measure
from peftprune.errors import UsageError
from peftprune.study.store import ArmFolder

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy


@dataclass(frozen=True)
class Chosen:
    """One finished arm.

    Attributes:
        cell: the study, restricted to the arm's task, budget and method.
        key: its task, budget, method and seed.
        folder: its files.
        result: the contents of its `result.json`.
        among: seeds that were finished, where the arm was chosen for its score; else empty.
    """

    cell: StoredStudy
    key: dict[str, Any]
    folder: ArmFolder
    result: dict[str, Any]
    among: tuple[int, ...] = ()

    @property
    def primary(self) -> str:
        return self.cell.primary[self.key["task"]]

    @property
    def words(self) -> str:
        """Which arm, and why this one."""
        text = f"{self.key['method']}, seed {self.key['seed']} ({self.key['task']}, {self.key['budget']})"
        if self.among:
            score = self.result["metrics"][self.primary]
            text += f": best {self.primary} ({score:.4f}) of {len(self.among)} finished seed(s)"
        return text


def choose(
    comparison: StoredStudy, method: str, seed: int | str, *, task: str | None = None, budget: str | None = None
) -> Chosen:
    """Find the arm.

    Args:
        comparison: a stored study.
        method: the method's label.
        seed: a seed, or "best": the finished arm with the best primary metric; the lower seed among equals.
        task: needed where the study has several.
        budget: needed where the study has several.

    Raises:
        UsageError: no such arm, an unfinished one, or a task or budget that must be named.
    """
    part = comparison.only(task=task, budget=budget, method=method)
    for name, known in (("task", part.tasks), ("budget", part.budgets)):
        if len(known) > 1:
            raise UsageError.of(name, None, "must be named: the study has several", f"It has: {', '.join(known)}")
    arms = [(key, folder, folder.result()) for key, folder in part.arms()]
    finished = {key["seed"]: (key, folder, result) for key, folder, result in arms if result is not None}
    if not finished:
        why = next(iter(part.failures.values()), "it has not run")
        raise UsageError.of("method", method, f"has no finished arm: {why}", "Run the same compare again")
    if seed == "best":
        info = measure(part, part.metrics[0])
        sign = 1 if info.higher_is_better else -1
        number = max(sorted(finished), key=lambda s: sign * finished[s][2]["metrics"][part.metrics[0]])
        return Chosen(part, *finished[number], among=tuple(sorted(finished)))
    number = _number(seed)
    if number not in finished:
        seeds = ", ".join(map(str, sorted(finished)))
        raise UsageError.of("seed", seed, "has no finished arm", f"Finished seeds: {seeds}; or best")
    return Chosen(part, *finished[number])


def _number(seed: int | str) -> int:
    if isinstance(seed, bool) or not str(seed).strip().isdecimal():
        raise UsageError.of("seed", seed, "is neither a seed nor best", "Give a number, or best")
    return int(seed)
