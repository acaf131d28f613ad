"""`compare`: the main job. It plans every arm before training any, runs what is not done, and reads the store back."""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from peftprune.architectures.discover import base_linear_cost, discover_sites, head_modules
from peftprune.arm import ArmInputs, run_arm
from peftprune.budget import Budget, parse_budget
from peftprune.comparison import Comparison
from peftprune.data import check_lengths, sample_training, tokenise
from peftprune.errors import UsageError
from peftprune.ledger import BaseCost
from peftprune.methods import MethodSpec, parse
from peftprune.models import load_model, pick_dtype
from peftprune.planning import ArmPlan, plan_arm
from peftprune.progress import Reporter
from peftprune.settings import TrainingSettings, resolve_settings
from peftprune.store import StudyFolder, config_hash
from peftprune.tasks import Task, load_task

_PACKAGES = ("peftprune", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def compare(
    methods: str | Sequence[Any] = ("lora", "lorpa", "prilora", "lora-drop"),
    task: str | Task = "entailment-mini",
    *,
    model: str | Path = "minilm",
    budget: Budget | str = "rank=8",
    seeds: int | Sequence[int] = 1,
    target_modules: str | Sequence[str] = "all-linear",
    data_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    warmup_ratio: float | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
    max_length: int | None = None,
    scaling: float | None = None,
    lora_dropout: float | None = None,
    max_train_samples: int | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    checkpoints: int | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Train every method on every seed under one budget, and return what came out.

    Arms that are done already are not trained again; one that was cut off goes on from its last checkpoint; one that
    failed is tried again. One arm's failure does not stop the others.

    Args:
        methods: names, labelled specs such as `"lorpa:r64(initial_rank=64)"`, strategy objects or classes.
        task: a task's name (see `peftprune.tasks.TASKS`) or a `Task`.
        model: `minilm` (offline), a folder, or a hub name.
        budget: a `Budget`, its text (`"rank=8"`, `"params=300000"`, `"fraction=0.003"`), or `"paper"` for each
            method's published setting.
        seeds: how many (0, 1, ...), or which.
        target_modules: `"attention"` (query and value), `"all-linear"`, or names as PEFT takes them.
        data_dir: folder with the data; default: the environment variable `PEFTPRUNE_DATA`.
        output_dir: the study's folder; default: `runs/<task>`.
        epochs: 3, unless the budget names a length of training.
        learning_rate: 1e-3.
        batch_size: 32 examples per optimizer step.
        gradient_accumulation_steps: 1.
        warmup_ratio: 0.06.
        weight_decay: 0.01.
        max_grad_norm: 1.0.
        max_length: 256 tokens.
        scaling: 2.0 at every site (alpha = 2 · rank).
        lora_dropout: 0.
        max_train_samples: all.
        dtype: "auto" (bfloat16 where the hardware has it, recorded).
        checkpoints: 5 per run.
        progress: show progress; default: only on a terminal.

    Returns:
        The comparison, also when arms failed: see its `failures`.

    Raises:
        UsageError: for a request that cannot be run; nothing was trained.
    """
    given = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "warmup_ratio": warmup_ratio,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "max_length": max_length,
        "scaling": scaling,
        "lora_dropout": lora_dropout,
        "max_train_samples": max_train_samples,
        "dtype": dtype,
        "checkpoints": checkpoints,
    }
    specs = parse(methods)
    budget_ = parse_budget(budget)
    if epochs is not None and isinstance(budget_, Budget) and budget_.has_length:
        raise UsageError.of("epochs", epochs, "is named beside the budget's length of training", "Keep one of them")
    seed_list = parse_seeds(seeds)
    settings = resolve_settings(given)
    task_ = load_task(task, data_dir=data_dir) if isinstance(task, str) else task
    study = StudyFolder(Path(output_dir) if output_dir is not None else Path("runs") / task_.name)
    study.prepare()
    setup = _Setup(model, task_, settings, target_modules)
    plans = [setup.plan(spec, budget_, given) for spec in specs]
    environment = _environment(study, settings)
    arms = [
        (spec, plan, seed, setup.arm_config(spec, plan, seed, environment))
        for seed in seed_list
        for spec, plan in zip(specs, plans, strict=True)
    ]
    study.write_request(
        {
            "task": task_.name,
            "model": str(model),
            "budget": "paper" if isinstance(budget_, str) else asdict(budget_),
            "seeds": seed_list,
            "target_modules": target_modules if isinstance(target_modules, str) else list(target_modules),
            "settings": settings.as_dict(),
            "metrics": setup.metric_names(),
            "evaluation_split": task_.evaluation_split,
            "sites": len(setup.shapes),
            **environment,
            "arms": [{"label": s.label, "seed": n, "hash": config_hash(c)} for s, _, n, c in arms],
        }
    )
    steps = sum(plan.budget.total_steps for _, plan, _, _ in arms)
    _run_all(study, arms, setup, environment["dtype"], Reporter(steps, enabled=progress))
    return Comparison.load(study.path)


def parse_seeds(seeds: int | Sequence[int]) -> list[int]:
    """A number of seeds as 0, 1, ...; a sequence as it is.

    Raises:
        UsageError: for none, negative or repeated seeds.
    """
    found = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not found:
        raise UsageError.of("seeds", seeds, "leaves nothing to run", "Give at least 1")
    if any(not isinstance(s, int) or s < 0 for s in found) or len(set(found)) < len(found):
        raise UsageError.of("seeds", seeds, "are not distinct whole numbers from 0", "Give 3, or [0, 1, 2]")
    return found


class _Setup:
    """Model, data and sites: what all arms of a study share, loaded once."""

    def __init__(
        self, model: str | Path, task: Task, settings: TrainingSettings, target_modules: str | Sequence[str]
    ) -> None:
        self.task = task
        self.settings = settings
        self.model = load_model(model, task.num_labels, task.kind)
        self.target_modules = target_modules
        self.shapes = discover_sites(self.model.model, target_modules)
        self.head = head_modules(self.model.model)
        in_head = {id(p) for name in self.head for p in self.model.model.get_submodule(name).parameters()}
        self.base_parameters = sum(p.numel() for p in self.model.model.parameters() if id(p) not in in_head)
        self._inputs: dict[tuple[int, int | None], ArmInputs] = {}

    def plan(self, spec: MethodSpec, budget: Budget | Literal["paper"], given: dict[str, Any]) -> ArmPlan:
        plan = plan_arm(
            spec,
            self.shapes,
            budget,
            given,
            num_examples=len(self.task.train),
            base_parameters=self.base_parameters,
            task=self.task.name,
        )
        check_lengths(self.model, plan.settings.max_length)
        return plan

    def inputs(self, plan: ArmPlan, dtype: str) -> ArmInputs:
        """Tokenised data for an arm; arms with the same lengths and sample share it."""
        length, samples = plan.settings.max_length, plan.settings.max_train_samples
        if (length, samples) not in self._inputs:
            task, cost = self.task, base_linear_cost(self.model.model)
            train = sample_training(task.train, samples)
            prefix = task.fingerprint
            self._inputs[length, samples] = ArmInputs(
                model=self.model,
                head=self.head,
                base_cost=BaseCost(
                    sum(cost["linear_params_per_layer"].values()), cost["hidden_size"] * cost["attention_layers"]
                ),
                task=task,
                train=tokenise(train, self.model, length, f"{prefix}/train/{samples}"),
                evaluation={s: tokenise(d, self.model, length, f"{prefix}/{s}") for s, d in task.evaluation.items()},
                dtype=dtype,
            )
        return self._inputs[length, samples]

    def metric_names(self) -> list[str]:
        """As in the results: those of the second and later evaluation splits carry the split's name."""
        splits = list(self.task.evaluation)
        return [m if i == 0 else f"{m}_{s}" for i, s in enumerate(splits) for m in self.task.metrics]

    def arm_config(self, spec: MethodSpec, plan: ArmPlan, seed: int, environment: dict[str, Any]) -> dict[str, Any]:
        """Everything that changes an arm's result, and nothing else: what its hash is made of."""
        return {
            "method": plan.method.name,
            "options": asdict(plan.method.config),
            "source": _source(type(plan.method)),
            "seed": seed,
            "task": {"name": self.task.name, "fingerprint": self.task.fingerprint, "metrics": list(self.task.metrics)},
            "model": self.model.fingerprint,
            "sites": [s.name for s in self.shapes],
            "budget": vars(plan.budget),
            "settings": {k: v for k, v in plan.settings.as_dict().items() if k not in ("dtype", "checkpoints")},
            "dtype": environment["dtype"],
            "threads": environment["threads"],
            "device": environment["hardware"]["device"],
            "versions": environment["versions"],
        }


def _source(cls: type) -> str:
    """The code of a user's own strategy, so that editing it makes a new arm; empty for those the versions cover."""
    if cls.__module__.startswith("peftprune."):
        return ""
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return cls.__qualname__


def _environment(study: StudyFolder, settings: TrainingSettings) -> dict[str, Any]:
    """Threads, dtype, versions and hardware. Threads and automatic dtype stay as they were when the study began."""
    try:
        before = study.read_request()
    except UsageError:
        before = {}
    threads = before.get("threads", torch.get_num_threads())
    torch.set_num_threads(threads)
    dtype = pick_dtype(settings.dtype)
    if settings.dtype == "auto":
        dtype = before.get("dtype", dtype)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "dtype": dtype,
        "threads": threads,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "hardware": {"device": device, "machine": platform.machine(), "cores": os.cpu_count(), "system": sys.platform},
    }


def _run_all(
    study: StudyFolder,
    arms: Iterable[tuple[MethodSpec, ArmPlan, int, dict[str, Any]]],
    setup: _Setup,
    dtype: str,
    reporter: Reporter,
) -> None:
    with reporter:
        for spec, plan, seed, config in arms:
            folder = study.arm(spec.label, seed, config_hash(config))
            if folder.result() is not None:
                reporter.skipped(spec.label, seed, plan.budget.total_steps)
                continue
            reporter.started(spec.label, seed, plan.budget.total_steps)
            try:
                # A strategy carries state: every arm gets one of its own.
                result = run_arm(plan.renewed(spec), setup.inputs(plan, dtype), seed, folder, config, reporter.step)
            except Exception as error:
                folder.record_error(error, spec.label, seed)
                reporter.failed(spec.label, seed, error)
            else:
                reporter.finished(spec.label, seed, result["metrics"])
