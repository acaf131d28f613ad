"""Selects one finished arm of a study."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from peftprune.analysis.predictions import measure
from peftprune.errors import UsageError
from peftprune.study.store import ArmFolder
from peftprune.study.stored_study import StoredStudy


@dataclass(frozen=True)
class Chosen:
    """One finished arm: its cell, key, files and the contents of its `result.json`.

    `cell` is the study, restricted to the arm's task, budget and method; `key` holds these and the seed; `among` lists
    the finished seeds where the arm was selected by its score, else nothing; `means` are the mean scores of the methods
    with finished arms where the method was, too.
    """

    cell: StoredStudy
    key: dict[str, Any]
    folder: ArmFolder
    result: dict[str, Any]
    among: tuple[int, ...] = ()
    means: Mapping[str, float] = field(default_factory=dict)

    @property
    def primary(self) -> str:
        return self.cell.primary[self.key["task"]]

    @property
    def words(self) -> str:
        """The arm and the reason for its selection."""
        text = f"{self.key['method']}, seed {self.key['seed']} ({self.key['task']}, {self.key['budget']})"
        if self.means:
            mean = self.means[self.key["method"]]
            text += f": best mean {self.primary} ({mean:.4f}) of {len(self.means)} method(s)"
        if self.among:
            score = self.result["metrics"][self.primary]
            text += f": best {self.primary} ({score:.4f}) of {len(self.among)} finished seed(s)"
        return text


def choose(
    study: StoredStudy, method: str, seed: int | str = "best", *, task: str | None = None, budget: str | None = None
) -> Chosen:
    """Returns the arm that `export` describes; among equally good ones, the first method and the lower seed.

    Raises UsageError if there is no such arm, it is not finished, or task or budget is required.
    """
    by_score = method == "best" and method not in study.methods
    part = study.only(task=task, budget=budget, method=None if by_score else method)
    for name, known in (("task", part.tasks), ("budget", part.budgets)):
        if len(known) > 1:
            raise UsageError.of(name, None, "must be named: the study has several", f"It has: {', '.join(known)}")
    sign = 1 if measure(part, part.tasks[0], part.metrics[0]).higher_is_better else -1
    means = dict[str, float]()
    if by_score:
        scores = [(key["method"], result["metrics"][part.metrics[0]]) for key, _, result in part.finished()]
        means = {label: fmean(s for m, s in scores if m == label) for label, _ in scores}
        method = max((m for m in part.methods if m in means), key=lambda m: sign * means[m], default=method)
        part = part.between(method)
    finished = {key["seed"]: (key, folder, result) for key, folder, result in part.finished()}
    if not finished:
        why = next(iter(part.failures.values()), "it has not run")
        raise UsageError.of("method", method, f"has no finished arm: {why}", "Run the same compare again")
    if seed == "best":
        number = max(sorted(finished), key=lambda s: sign * finished[s][2]["metrics"][part.metrics[0]])
        return Chosen(part, *finished[number], tuple(sorted(finished)), means)
    if isinstance(seed, bool) or not str(seed).strip().isdecimal():
        raise UsageError.of("seed", seed, "is neither a seed nor best", "Give a number, or best")
    number = int(seed)
    if number not in finished:
        seeds = ", ".join(map(str, sorted(finished)))
        raise UsageError.of("seed", seed, "has no finished arm", f"Finished seeds: {seeds}; or best")
    return Chosen(part, *finished[number], means=means)
