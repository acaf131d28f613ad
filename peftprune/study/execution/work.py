"""Trains the arms of a planned study. Any number of processes can work on the same study at once.

A process trains an arm while it holds the lock of the arm's folder. If the process dies, the operating system releases
the lock, and another process resumes the arm from its last checkpoint.
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
from peftprune.study.task_setup import Setup, device_name
from peftprune.study.versions import package_versions
from peftprune.tasks import Task
from peftprune.training.settings import TrainingSettings

_PAUSE = 0.5
"""Seconds before arms that other processes have locked are tried again."""


class Listener(Protocol):
    """Receives the events of a process that trains arms. `label` is the arm's name, `paused` the step it ended at."""

    def started(self, label: str, seed: int, steps: int) -> None: ...
    def step(self, done: int, total: int, phase: str, ranks: int) -> None: ...
    def skipped(self, label: str, seed: int, steps: int) -> None: ...
    def finished(self, label: str, seed: int, metrics: Mapping[str, float], paused: int | None = None) -> None: ...
    def failed(self, label: str, seed: int, error: str) -> None: ...


@dataclass(frozen=True)
class StudyArm:
    """One planned arm of a study: its task and budget by name, its method, seed and plan.

    `config` holds everything that changes the arm's result; its hash identifies the arm. `name` is the arm's in
    messages, and `depends_on` the arm whose outcome this one needs. With `until` it pauses at that step.
    """

    task: str
    budget: str
    spec: MethodSpec
    seed: int
    plan: ArmPlan
    config: dict[str, Any]
    name: str
    depends_on: StudyArm | None = None
    until: int | None = None

    @cached_property
    def hash(self) -> str:
        return config_hash(self.config)

    @property
    def steps(self) -> int:
        """The steps after which the arm has nothing left to do."""
        return self.plan.budget.total_steps if self.until is None else self.until

    @property
    def dependencies(self) -> list[StudyArm]:
        """The arms that have to run before this one, in their order."""
        return [] if self.depends_on is None else [*self.depends_on.dependencies, self.depends_on]

    def plan_to_run(self, study: StudyFolder) -> ArmPlan:
        """Returns the plan with a new strategy, since strategies carry state, and with the outcome it depends on.

        Raises RunError if the arm that this one depends on has no result.
        """
        plan, needed = replace(self.plan, method=self.spec.build()), self.depends_on
        if needed is None:
            return plan
        if (result := study.arm(needed.spec.label, needed.seed, needed.hash).result()) is None:
            raise RunError(f"{self.spec.label}: needs the outcome of {needed.spec.label!r}, which failed. Fix it first")
        return plan.after(Outcome.of(result))


@dataclass(frozen=True)
class LazySetup:
    """Builds a task's `Setup` on first use. Pickled, it holds the arguments only: every process loads its own model."""

    model: str | Path
    task: Task
    settings: TrainingSettings
    target_modules: str | Sequence[str]

    @cached_property
    def setup(self) -> Setup:
        return Setup(self.model, self.task, self.settings, self.target_modules)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Work:
    """A planned study, with everything that a process needs to train its arms.

    `arms` are in the order of the tables, and `setups` hold model, data and sites by task name. `device` (the name of a
    GPU, or "cpu") and `versions` are those that the arms are planned for. `token` is the random name of this attempt at
    the study; arms that failed in others are retried. `trackers` are those of `training.tracking`.
    """

    study: StudyFolder
    arms: tuple[StudyArm, ...]
    setups: Mapping[str, LazySetup]
    dtype: str
    threads: int
    device: str
    versions: Mapping[str, str]
    token: str
    trackers: tuple[str, ...] = ()

    @property
    def ordered(self) -> list[StudyArm]:
        """The arms in the order in which they run: each one after its dependencies."""
        return list({id(a): a for arm in self.arms for a in (*arm.dependencies, arm)}.values())

    @property
    def total_steps(self) -> int:
        return sum(arm.steps for arm in self.ordered)

    def unfinished(self) -> dict[int, StudyArm]:
        """Returns the arms that are to be trained now, by their index in `ordered`."""
        return {i: arm for i, arm in enumerate(self.ordered) if self._is_open(arm)}

    def only(self, index: int) -> Work:
        """Returns the work for one arm, by its index in `ordered`, and for the arms that it depends on."""
        return replace(self, arms=(self.ordered[index],))

    def rounds(self, seeds: Mapping[tuple[str, str, str], int]) -> Work:
        """Returns the work for the seeds below a number for each task, budget and method, with what they depend on."""
        kept = [a for a in self.arms if a.seed < seeds.get((a.task, a.budget, a.spec.label), 0)]
        needed = {id(arm) for arm in replace(self, arms=tuple(kept)).ordered}
        return replace(self, arms=tuple(a for a in self.arms if id(a) in needed))

    def check_here(self) -> None:
        """Raises RunError if the device or a package version differs from those that the arms' hashes state."""
        device, versions = device_name(), package_versions()
        if device != self.device:
            raise RunError(
                f"device: {device!r} here ({platform.node()}), and the study is planned for {self.device!r}. Plan it "
                "on a machine like those that train it, or give those the right share of a GPU"
            )
        if other := [f"{n} {versions[n]} for {v}" for n, v in self.versions.items() if versions[n] != v]:
            raise RunError(f"versions: {', '.join(other)} here ({platform.node()}). Install the same ones everywhere")

    def run(self, listener: Listener) -> None:
        """Trains the arms that no other process trains, and returns when every arm is finished or has failed.

        Raises RunError if the study's folder cannot be written any more.
        """
        waiting = self.ordered
        while waiting:
            try:
                blocked = [arm for arm in waiting if not self.attempt(arm, listener)]
            except OSError as error:
                if (explained := storage_error(error, self.study.path)) is None:
                    raise
                raise explained from error
            if len(blocked) == len(waiting):
                time.sleep(_PAUSE)
            waiting = blocked

    def folder(self, arm: StudyArm) -> ArmFolder:
        return self.study.arm(arm.spec.label, arm.seed, arm.hash)

    def attempt(self, arm: StudyArm, listener: Listener) -> bool:
        """Trains one arm unless it has ended. Returns False if another process trains it or one of its dependencies."""
        folder, steps = self.folder(arm), arm.steps
        if self._is_open(arm):
            if any(self._is_open(needed) for needed in arm.dependencies):
                return False
            with folder.lock() as held:
                if not held:
                    return False
                folder.tidy()
                if self._is_open(arm):
                    listener.started(arm.name, arm.seed, steps)
                    self._train(arm, listener)
                    return True
        elif folder.result() is not None:
            folder.tidy()
        listener.skipped(arm.name, arm.seed, steps)
        return True

    def _is_open(self, arm: StudyArm) -> bool:
        """Returns whether the arm has not come to its end or pause, nor failed in this attempt or diverged in any."""
        folder = self.folder(arm)
        if arm.until is not None and folder.paused() is not None:
            return False
        return folder.result() is None and not folder.failed_in(self.token)

    def _train(self, arm: StudyArm, listener: Listener) -> None:
        folder = self.folder(arm)
        try:
            plan, inputs = arm.plan_to_run(self.study), self.setups[arm.task].setup.inputs(arm.plan, self.dtype)
            result = run_arm(plan, inputs, arm.seed, folder, arm.config, listener.step, self.trackers, arm.until)
        except Exception as error:
            if (explained := storage_error(error, folder.path) or error) is not error:
                explained.__cause__ = error
            # If not even this can be written, the error ends the study, which could store nothing else.
            folder.record_error(explained, arm.spec.label, arm.seed, self.token)
            listener.failed(arm.name, arm.seed, str(explained))
        else:
            listener.finished(arm.name, arm.seed, result["metrics"], result.get("step"))
