"""What all arms of one task share: model, data and sites; and the environment of the study."""

import inspect
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any, Literal

import torch

from peftprune.errors import UsageError
from peftprune.methods.registry import MethodSpec
from peftprune.models.bundled import known_name
from peftprune.models.layers import count_parameters, discover_sites, head_modules
from peftprune.models.load import describe, load_model
from peftprune.models.precision import timed_dtype
from peftprune.stats.metrics import check_libraries
from peftprune.strategy.budget import Budget
from peftprune.strategy.options import identity
from peftprune.study.planning import ArmPlan, plan_arm
from peftprune.study.published import check_published
from peftprune.study.store import StudyFolder
from peftprune.study.versions import package_versions
from peftprune.tasks import Task
from peftprune.training.evaluation import metric_name
from peftprune.training.objectives import ArmInputs, Objective, Splits, objective_of
from peftprune.training.settings import TrainingSettings
from peftprune.training.tokenise import Example, sample

_NUMERICS = 2
"""Numerics version; bump it when an identical configuration gives different results."""
_MOST_THREADS = 1024


class Setup:
    """Model, data and sites of one task, loaded once for all its arms."""

    def __init__(
        self, model: str | Path, task: Task, settings: TrainingSettings, target_modules: str | Sequence[str]
    ) -> None:
        check_libraries(task.metrics)
        self.all_examples = {split: len(rows) for split, rows in task.evaluation.items()}
        if (limit := settings.max_eval_samples) is not None:
            chosen = {split: sample(rows, limit, "max_eval_samples") for split, rows in task.evaluation.items()}
            task = replace(task, evaluation=chosen)
        self.task = task
        self.settings = settings
        form = settings.base_form
        self.model = load_model(model, task.num_labels, task.kind, form)
        self.objective = objective_of(task, self.model)
        self.shapes = discover_sites(self.model.model, target_modules)
        self.head = head_modules(self.model.model)
        # Quantised tensors hold several weights per entry, so counting their entries would count too few.
        shape = self.model.model if form.load_in is None else describe(model, task.num_labels, task.kind)
        self.base_parameters, _ = count_parameters(shape)
        self._inputs: dict[tuple[Any, ...], ArmInputs] = {}

    def plan(self, spec: MethodSpec, budget: Budget | Literal["paper"], given: dict[str, Any]) -> ArmPlan:
        plan = plan_arm(
            spec,
            self.shapes,
            budget,
            given,
            num_examples=len(self.task.train),
            base_parameters=self.base_parameters,
            task=self.task.name,
            model=known_name(self.model.model.config),
        )
        check_published(plan.published)
        if given.get("max_length") is None and "max_length" not in {value.setting for value in plan.published}:
            plan = self._shortened(plan)
        self.objective.check(plan.settings)
        return plan

    def _shortened(self, plan: ArmPlan) -> ArmPlan:
        """Returns the plan with a default `max_length` that the model reads, where there is one."""
        longest, settings = self.objective.longest(plan.settings), plan.settings
        if longest is None or not 2 <= longest < settings.max_length:
            return plan
        return replace(plan, settings=replace(settings, max_length=longest))

    def inputs(self, plan: ArmPlan, dtype: str) -> ArmInputs:
        """Returns the tokenised data of an arm; arms with the same lengths, prompt and sample share it."""
        settings, samples = plan.settings, plan.settings.max_train_samples
        key = (settings.max_length, settings.max_target_length, settings.prompt, samples)
        if key not in self._inputs:
            task, tokenise = self.task, self.objective.tokenise
            train = tokenise(sample(task.train, samples, "max_train_samples"), settings, f"train/{samples}")
            self._inputs[key] = ArmInputs(
                model=self.model,
                head=self.head,
                base_cost=self.objective.base_cost(train),
                task=task,
                objective=self.objective.fitted(train),
                train=train,
                evaluation={s: tokenise(d, settings, s) for s, d in task.evaluation.items()},
                dtype=dtype,
                held_out=self._held_out(train, settings),
            )
        return self._inputs[key]

    def _held_out(self, train: list[Example], settings: TrainingSettings) -> tuple[Objective, Splits] | None:
        """Returns what scores the checkpoints to select from, as `ArmInputs` holds it."""
        if settings.select == "last":
            return None
        split, rows = next(iter(self.task.evaluation.items()))
        if settings.select == "validation":
            assert self.task.validation is not None
            split, rows = "validation", self.task.validation
        objective = objective_of(replace(self.task, evaluation={split: rows}), self.model)
        return objective.fitted(train), {split: objective.tokenise(rows, settings, split)}

    def describe(self) -> dict[str, Any]:
        """Returns the task as `study.json` holds it."""
        task = self.task
        return {
            "name": task.name,
            "kind": task.kind,
            "metrics": [metric_name(m, s, i) for i, s in enumerate(task.evaluation) for m in task.metrics],
            "evaluation_split": self._reported(),
            "train_examples": len(task.train),
            "evaluation_examples": {split: len(rows) for split, rows in task.evaluation.items()},
            "label_names": task.label_names,
            "source": task.source,
            "named": task.named,
            "files": dict(task.files),
        }

    def _reported(self) -> str:
        """Returns the reported split in words, with its sample size and decoding where they apply."""
        words = [self.task.evaluation_split]
        for split, rows in self.task.evaluation.items():
            if len(rows) < self.all_examples[split]:
                words.append(f"a fixed sample of {len(rows):,} of {self.all_examples[split]:,} examples ({split})")
        select, held_out = self.settings.select, self.task.validation
        if select == "validation" and held_out is not None:
            words.append(f"best checkpoint on {len(held_out):,} validation examples")
        elif select == "paper":
            words.append("best checkpoint on the reported split itself")
        return ", ".join(filter(None, [*words, self.objective.decoding(self.settings)]))

    def arm_config(self, spec: MethodSpec, plan: ArmPlan, seed: int, found: dict[str, Any]) -> dict[str, Any]:
        """Returns everything that changes an arm's result, and nothing else: the content of its hash."""
        return {
            "method": plan.method.name,
            "options": identity(plan.method.config),
            "source": _source(type(plan.method)),
            "seed": seed,
            "task": {"name": self.task.name, "fingerprint": self.task.fingerprint, "metrics": list(self.task.metrics)},
            "model": self.model.fingerprint,
            "sites": [s.name for s in self.shapes],
            "budget": plan.budget.as_dict(),
            "settings": plan.settings.identity(self.task.kind) | self.objective.identity(plan.settings),
            "dtype": found["dtype"],
            "threads": found["threads"],
            "device": found["hardware"]["device"],
            "versions": found["versions"],
            "numerics": _NUMERICS,
            **({"revision": plan.method.revision} if plan.method.revision else {}),
        }


def _source(cls: type) -> str:
    """Returns the code of a user's own method and of what it inherits, so that editing any of it makes a new arm.

    Empty for built-in methods, which the versions cover.
    """
    own = [c for c in cls.__mro__ if not c.__module__.startswith(("peftprune.", "builtins", "abc"))]
    return "\n".join(_code(c) for c in own)


def _code(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        # A class from a notebook has no file, but its functions know their cell.
        return "\n".join([cls.__qualname__, *(_member(name, vars(cls)[name]) for name in sorted(vars(cls)))])


def _member(name: str, value: Any) -> str:
    function = getattr(value, "__func__", value)
    if inspect.isfunction(function):
        try:
            return inspect.getsource(function)
        except (OSError, TypeError):
            return _bytecode(function.__code__)
    plain = isinstance(value, bool | int | float | str) and not name.startswith("__")
    return f"{name} = {value!r}" if plain else ""


def _bytecode(code: CodeType) -> str:
    inner = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def device_name() -> str:
    """Returns the name of the GPU that arms train on, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def environment(study: StudyFolder, settings: TrainingSettings, threads: int | None, default: int) -> dict[str, Any]:
    """Returns threads, dtype, versions and hardware. An existing study keeps its threads and its automatic dtype.

    A new study times a product of each dtype; the seconds stand beside the choice. It has `default` threads per arm
    where the user gives none. Raises UsageError for threads that are not a whole number from 1 to 1024.
    """
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    # OpenMP ends the process where it cannot start its threads.
    if threads is not None and not (whole and 1 <= threads <= _MOST_THREADS):
        raise UsageError.of("threads", threads, f"is not a whole number from 1 to {_MOST_THREADS}", "Give 1 or more")
    before = study.machine_choices()
    threads = threads or before.get("threads", default)
    torch.set_num_threads(threads)
    dtype: str = settings.dtype
    seconds: dict[str, float] = {}
    if dtype == "auto":
        dtype, seconds = (before["dtype"], {}) if "dtype" in before else timed_dtype()
    return {
        "dtype": dtype,
        **({"product_seconds": seconds} if seconds else {}),
        "threads": threads,
        "versions": package_versions(),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Returns the device and what else of a machine decides the bits of a result."""
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "system": sys.platform}
    return {"device": device_name(), "processor": processor(), **machine}


def differs_here(request: Mapping[str, Any]) -> str | None:
    """Returns in words how a stored study's versions and device differ from these, if they do."""
    then = {**request["versions"], "device": request["hardware"]["device"]}
    now = {**package_versions(), "device": device_name()}
    found = [f"{name} {value} ({now.get(name)} here)" for name, value in then.items() if now.get(name) != value]
    return f"was trained with {', '.join(found)}" if found else None


def processor() -> str:
    """Returns the name of the processor, as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
