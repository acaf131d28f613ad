"""A stored study: what was requested, and the files of its arms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any, Self

from peftprune.errors import UsageError
from peftprune.study.store import ArmFolder, StudyFolder


class _ArmSnapshot(ArmFolder):
    """Reads an arm's result, error and trace at most once."""

    _NAMES: tuple[str, ...] = ("result", "error", "allocation")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for name in self._NAMES:
            self.__dict__[name] = cache(getattr(self, name))


class _WholeArm(_ArmSnapshot):
    """Takes a finished arm with a damaged file for a failed one."""

    _NAMES = (*_ArmSnapshot._NAMES, "config", "history", "read_predictions", "damage")

    @cached_property
    def _stored(self) -> dict[str, Any] | None:
        return super().result()

    def result(self) -> dict[str, Any] | None:
        return None if self._stored is None or self.damage() is not None else self._stored

    def error(self) -> dict[str, Any] | None:
        why = None if self._stored is None else self.damage()
        return super().error() if why is None else {"error": why}


class StoredStudy:
    """A study, read from its folder `path`. It reads the files of its arms on every call.

    `request` is the resolved one, with versions and hardware.
    """

    def __init__(
        self, path: Path, request: Mapping[str, Any], open_arm: Callable[[str, int, str], ArmFolder] | None = None
    ) -> None:
        self.path = path
        self.request = request
        self._open_arm = open_arm or StudyFolder(path).arm

    @classmethod
    def load(cls, output_dir: str | Path) -> Self:
        """Reads a stored study. Raises UsageError if the folder holds none."""
        path = Path(output_dir)
        return cls(path, StudyFolder(path).read_request())

    def snapshot(self, *, whole: bool = False) -> StoredStudy:
        """Returns the same study; it and its parts read the result, error and trace of each arm at most once.

        `whole` takes a finished arm with a damaged file for a failed one, instead of an error when it is read.
        """
        arm_type = _WholeArm if whole else _ArmSnapshot
        return StoredStudy(self.path, self.request, cache(lambda *arm: arm_type(self._open_arm(*arm).path)))

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return [t["name"] for t in self.request["tasks"]]

    @property
    def budgets(self) -> list[str]:
        """Labels of the budgets, such as "rank=8"."""
        return [b["label"] for b in self.request["budgets"]]

    @property
    def methods(self) -> list[str]:
        """Labels of the methods."""
        return [m["label"] for m in self.request["methods"]]

    @property
    def metrics(self) -> list[str]:
        """Names of the reported metrics of all tasks; the first task's primary one first."""
        return list(dict.fromkeys(m for t in self.request["tasks"] for m in t["metrics"]))

    @property
    def primary(self) -> dict[str, str]:
        """Task to its primary metric."""
        return {t["name"]: t["metrics"][0] for t in self.request["tasks"]}

    def only(self, *, task: str | None = None, budget: str | None = None, method: str | None = None) -> Self:
        """Returns the same study, restricted to a task, a budget or a method; None restricts nothing.

        Raises UsageError if the study has no such part.
        """
        request = dict(self.request)
        keys = {"tasks": ("name", "task", task), "budgets": ("label", "budget", budget)}
        for part, (key, in_arm, value) in {**keys, "methods": ("label", "label", method)}.items():
            if value is None:
                continue
            request[part] = [row for row in request[part] if row[key] == value]
            if not request[part]:
                known = ", ".join(row[key] for row in self.request[part])
                raise UsageError.of(part.removesuffix("s"), value, "is not in the study", f"It has: {known}")
            request["arms"] = [a for a in request["arms"] if a[in_arm] == value]
        return type(self)(self.path, request, self._open_arm)

    def between(self, *methods: str) -> Self:
        """Returns the same study with these methods alone."""
        rows = [m for m in self.request["methods"] if m["label"] in methods]
        arms = [a for a in self.request["arms"] if a["label"] in methods]
        return type(self)(self.path, {**self.request, "methods": rows, "arms": arms}, self._open_arm)

    def cells(self) -> Iterator[Self]:
        """Yields the study restricted to one task and one budget at a time; a study that grew may lack some of them."""
        for task, budget in product(self.tasks, self.budgets):
            if (cell := self.only(task=task, budget=budget)).request["arms"]:
                yield cell

    def arms(self) -> Iterator[tuple[dict[str, Any], ArmFolder]]:
        """Yields the key of each arm (`task`, `budget`, `method`, `seed`) and its files."""
        for a in self.request["arms"]:
            key = {"task": a["task"], "budget": a["budget"], "method": a["label"], "seed": a["seed"]}
            yield key, self._open_arm(a["label"], a["seed"], a["hash"])

    def finished(self) -> Iterator[tuple[dict[str, Any], ArmFolder, dict[str, Any]]]:
        """Yields key, files and result of each finished arm."""
        for key, folder in self.arms():
            if (result := folder.result()) is not None:
                yield key, folder, result

    def arm(self, method: str, seed: int, *, task: str | None = None, budget: str | None = None) -> ArmFolder:
        """Returns the files of one arm; task and budget are required where the study has several.

        Raises KeyError if the study has no such arm, or several.
        """
        wanted = {"method": method, "seed": seed, "task": task, "budget": budget}
        given = {name: value for name, value in wanted.items() if value is not None}
        if len(found := [folder for key, folder in self.arms() if given.items() <= key.items()]) != 1:
            several = f"{len(found)} arms" if found else "no arm"
            raise KeyError(
                f"{several} {method!r} with seed {seed}, task {task!r}, budget {budget!r}; methods: {self.methods}, "
                f"seeds: {self.request['seeds']}, tasks: {self.tasks}, budgets: {self.budgets}"
            )
        return found[0]

    @property
    def failures(self) -> dict[str, str]:
        """Maps each failed arm that has not finished since, such as `lora, seed 0`, to its message."""
        return {
            self.name(key): error["error"]
            for key, folder in self.arms()
            if folder.result() is None and (error := folder.error()) is not None
        }

    def name(self, key: Mapping[str, Any]) -> str:
        """Returns an arm's name: `lora, seed 0`, after task and budget where the study has several."""
        parts = [key["task"]] * (len(self.tasks) > 1) + [key["budget"]] * (len(self.budgets) > 1)
        return ", ".join([*parts, key["method"], f"seed {key['seed']}"])

    def baseline_label(self, baseline: str | None) -> str:
        """Returns the label of the method that the others are compared with; None selects the first method.

        Raises UsageError if the study has no such method.
        """
        if baseline is None:
            return self.methods[0]
        if baseline not in self.methods:
            raise UsageError.of("baseline", baseline, "is not in the study", f"Labels: {', '.join(self.methods)}")
        return baseline
