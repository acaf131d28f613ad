"""The arms of a study as a queue that any number of processes may work on at once.

Whoever trains an arm holds the lock of its folder. The operating system lets go of it when its holder dies, however it
dies, so that the next process takes the arm up at its last checkpoint.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from peftprune.errors import RunError
from peftprune.methods.registry import MethodSpec
from peftprune.strategy.budget import Outcome
from peftprune.study.arm import run_arm
from peftprune.study.disk import storage_error
from peftprune.study.planning import ArmPlan
from peftprune.study.store import ArmFolder, StudyFolder, config_hash
from peftprune.study.task_setup import Setup, device_name, package_versions
from peftprune.tasks import Task
from peftprune.training.settings import TrainingSettings

_PAUSE = 0.5
"""Seconds between two looks at what other processes hold."""


class Listener(Protocol):
    """Who is told how the work goes on."""

    def started(self, label: str, seed: int, steps: int) -> None: ...

    def step(self, done: int, total: int, phase: str) -> None: ...

    def skipped(self, label: str, seed: int, steps: int) -> None: ...

    def finished(self, label: str, seed: int, metrics: Mapping[str, float]) -> None: ...

    def failed(self, label: str, seed: int, error: str) -> None: ...


@dataclass(frozen=True)
class StudyArm:
    """One arm of a study, planned.

    Attributes:
        task: the task's name.
        budget: the budget's label.
        spec: the method.
        seed: the arm's seed.
        plan: everything solved.
        config: what its hash is made of.
        name: what it is called in messages.
        depends_on: the arm whose outcome it needs.
    """

    task: str
    budget: str
    spec: MethodSpec
    seed: int
    plan: ArmPlan
    config: dict[str, Any]
    name: str
    depends_on: StudyArm | None = None

    @cached_property
    def hash(self) -> str:
        return config_hash(self.config)

    @property
    def chain(self) -> list[StudyArm]:
        """The arms it depends on, first things first, and itself."""
        return [*(self.depends_on.chain if self.depends_on is not None else ()), self]

    def ready(self, study: StudyFolder) -> ArmPlan:
        """The plan with a strategy of its own, since strategies carry state, and with what it depends on.

        Raises:
            RunError: when the arm that it depends on has no result.
        """
        plan, first = self.plan.renewed(self.spec), self.depends_on
        if first is None:
            return plan
        result = study.arm(first.spec.label, first.seed, first.hash).result()
        if result is None:
            raise RunError(f"{self.spec.label}: needs the outcome of {first.spec.label!r}, which failed. Mend it first")
        return plan.after(Outcome.of(result))


@dataclass(frozen=True)
class Source:
    """What a task's `Setup` is made of, so that another process can make its own."""

    model: str | Path
    task: Task
    settings: TrainingSettings
    target_modules: str | Sequence[str]

    @cached_property
    def setup(self) -> Setup:
        return Setup(self.model, self.task, self.settings, self.target_modules)

    def __getstate__(self) -> dict[str, Any]:
        # A loaded model does not travel.
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Work:
    """A planned study: all that a process needs to train its arms.

    Attributes:
        study: its folder.
        arms: in the order of the tables.
        sources: by task.
        dtype: "float32" or "bfloat16".
        threads: of every arm.
        device: what the arms are planned for: the name of a GPU, or "cpu".
        versions: of the packages, likewise.
        since: seconds since the epoch; a failure that is older is tried again.
    """

    study: StudyFolder
    arms: tuple[StudyArm, ...]
    sources: Mapping[str, Source]
    dtype: str
    threads: int
    device: str
    versions: Mapping[str, str]
    since: float

    @property
    def ordered(self) -> list[StudyArm]:
        """The arms in the order in which they run: as named, but what others wait for comes before them."""
        return list({id(a): a for arm in self.arms for a in arm.chain}.values())

    def unfinished(self) -> dict[int, StudyArm]:
        """The arms without a result at this moment, by their place in the order in which they run."""
        return {i: arm for i, arm in enumerate(self.ordered) if self.folder(arm).result() is None}

    def only(self, index: int) -> Work:
        """The one of the arms in their order, and what it depends on."""
        return replace(self, arms=(self.ordered[index],))

    def check_here(self) -> None:
        """Refuse to train where an arm would not be what its hash says.

        Raises:
            RunError: on another device, or with other versions, than the arms are planned for.
        """
        device, versions = device_name(), package_versions()
        if device != self.device:
            raise RunError(
                f"device: {device!r} here ({platform.node()}), and the study is planned for {self.device!r}. Plan it "
                "on a machine like those that train it, or give those the right share of a GPU"
            )
        other = [f"{n} {versions[n]} for {v}" for n, v in self.versions.items() if versions[n] != v]
        if other:
            raise RunError(f"versions: {', '.join(other)} here ({platform.node()}). Install the same ones everywhere")

    def run(self, listener: Listener) -> None:
        """Train what is not done and what no other process trains, until nothing of it is left.

        Raises:
            RunError: when the study's folder cannot be written any more.
        """
        waiting = self.ordered
        while waiting:
            try:
                left = [arm for arm in waiting if not self.attempt(arm, listener)]
            except OSError as error:
                told = storage_error(error, self.study.path)
                if told is None:
                    raise
                raise told from error
            if len(left) == len(waiting):
                time.sleep(_PAUSE)
            waiting = left

    def folder(self, arm: StudyArm) -> ArmFolder:
        return self.study.arm(arm.spec.label, arm.seed, arm.hash)

    def attempt(self, arm: StudyArm, listener: Listener) -> bool:
        """Train one arm unless that is done. False where another process holds it, or what it waits for."""
        folder, steps = self.folder(arm), arm.plan.budget.total_steps
        if self._open(arm):
            if any(self._open(first) for first in arm.chain[:-1]):
                return False
            with folder.lock() as held:
                if not held:
                    return False
                folder.tidy()
                if self._open(arm):
                    listener.started(arm.name, arm.seed, steps)
                    self._train(arm, listener)
                    return True
        elif folder.result() is not None:
            folder.tidy()
        listener.skipped(arm.name, arm.seed, steps)
        return True

    def _open(self, arm: StudyArm) -> bool:
        folder = self.folder(arm)
        return folder.result() is None and not folder.failed_since(self.since)

    def _train(self, arm: StudyArm, listener: Listener) -> None:
        folder = self.folder(arm)
        try:
            plan, inputs = arm.ready(self.study), self.sources[arm.task].setup.inputs(arm.plan, self.dtype)
            result = run_arm(plan, inputs, arm.seed, folder, arm.config, listener.step)
        except Exception as error:
            told = storage_error(error, folder.path) or error
            if told is not error:
                told.__cause__ = error
            # Where not even this can be written, the study ends: it could store nothing else.
            folder.record_error(told, arm.spec.label, arm.seed)
            listener.failed(arm.name, arm.seed, str(told))
        else:
            listener.finished(arm.name, arm.seed, result["metrics"])
