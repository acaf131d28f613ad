"""Turns the parsed arguments of `compare` into planned arms and into the request that `study.json` stores."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from peftprune.errors import UsageError, raise_all
from peftprune.methods.registry import MethodSpec
from peftprune.models.layers import left_out
from peftprune.strategy.budget import Budget
from peftprune.study.arguments import check_arms
from peftprune.study.arm import third
from peftprune.study.elsewhere import after_elsewhere
from peftprune.study.execution.backend import Backend
from peftprune.study.execution.work import LazySetup, StudyArm, Work
from peftprune.study.paths import place
from peftprune.study.planning import ArmPlan
from peftprune.study.store import StudyFolder
from peftprune.study.task_setup import Setup, environment
from peftprune.tasks import Task
from peftprune.training.settings import TrainingSettings, settings_of_other_kinds

_STEPS_A_YEAR = 365 * 86_400 * 1_000
"""At 1,000 optimizer steps a second, which is more than any machine takes."""
_MOST_YEARS = 10
"""Requests that would train for longer are mistakes."""


@dataclass(frozen=True)
class StudyRequest:
    """The parsed arguments of `compare` that say what to train. Methods, budgets and tasks have distinct labels.

    `named_settings` are those that the user named, which override a paper's; `settings` are those of every arm, unless
    its budget is the paper's. `chosen` maps task, budget and label of a method to settings and options that tuning
    chose for it, and `tuning` is what `study.json` says about that. Those in `paused` pause after a third of their
    steps. Raises UsageError for arguments that contradict each other.
    """

    methods: Sequence[MethodSpec]
    budgets: Mapping[str, Budget | Literal["paper"]]
    seeds: Sequence[int]
    target_modules: str | list[str]
    named_settings: dict[str, Any]
    settings: TrainingSettings
    model: str | Path
    data_dir: str | Path | None
    tasks: Sequence[Task]
    chosen: Mapping[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None
    paused: Collection[tuple[str, str, str]] = ()

    def __post_init__(self) -> None:
        in_order(self.methods)
        check_arms("seeds", len(self.seeds), len(self.seeds) * len(self.methods) * len(self.budgets) * len(self.tasks))
        named = self.named_settings
        lengths = [isinstance(b, Budget) and b.has_length for b in self.budgets.values()]
        # Beside a matched budget with a length, epochs are for a paper's run whose source states none.
        if "epochs" in named and any(lengths) and "paper" not in self.budgets.values():
            problem = "is named beside the budget's length of training"
            raise UsageError.of("epochs", named["epochs"], problem, "Keep one of them")
        unread = set.intersection(*(settings_of_other_kinds(t.kind) for t in self.tasks))
        if (misplaced := next((name for name in named if name in unread), None)) is not None:
            cure = f"Leave it out, or add a generation task to {', '.join(t.name for t in self.tasks)}"
            raise UsageError.of(misplaced, named[misplaced], "is for generation tasks only", cure)

    def plan(self, study: StudyFolder, backend: Backend, threads: int | None) -> tuple[Work, dict[str, Any]]:
        """Loads models and data and solves every arm. Returns the work, and the request as `study.json` stores it.

        The stored dtype and threads of the study precede the defaults; `backend` decides on the default of `threads`.
        Raises UsageError, which names every such arm, if arms cannot meet their budget or an argument does not fit the
        model or the data, and where training would take years.
        """
        setups = {t.name: LazySetup(self.model, t, self.settings, self.target_modules) for t in self.tasks}
        plans, errors = {}, []
        for task, (label, budget), spec in product(setups, self.budgets.items(), self.methods):
            setup = setups[task].setup
            try:
                plans[task, label, spec.label] = self._planned(setup, (task, label, spec.label), spec, budget)
            except UsageError as error:
                cell = [task] * (len(setups) > 1) + [label] * (len(self.budgets) > 1)
                errors.append(", ".join([*cell, str(error)]))
        raise_all(errors)
        self._check_length({key: plan for key, (_, plan) in plans.items()})
        fixed = environment(study, self.settings, threads, backend.default_threads(len(self.seeds) * len(plans)))
        arms = self._arms(setups, plans, fixed)
        device, versions = fixed["hardware"]["device"], fixed["versions"]
        # The default may be more than a model reads; arms with other settings than these are listed as such.
        lengths = [p.settings.max_length for (_, label, _), (_, p) in plans.items() if self.budgets[label] != "paper"]
        settings = replace(self.settings, max_length=max(lengths, default=self.settings.max_length))
        first = next(iter(setups.values())).setup
        rest = left_out(first.model.model, self.target_modules)
        token = secrets.token_hex(8)
        return Work(study, tuple(arms), setups, fixed["dtype"], fixed["threads"], device, versions, token), {
            "model": str(self.model),
            "methods": [{"label": s.label, "text": s.text} for s in self.methods],
            "tasks": [lazy.setup.describe() for lazy in setups.values()],
            "budgets": [{"label": n} | ({} if isinstance(b, str) else asdict(b)) for n, b in self.budgets.items()],
            "seeds": self.seeds,
            "target_modules": self.target_modules,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "given": self.named_settings,
            "settings": settings.as_dict(),
            "sites": len(first.shapes),
            **({"left_out": rest} if rest else {}),
            **fixed,
            **({} if self.tuning is None else {"tuning": self.tuning}),
            "place": place(study.path),
            "arms": [
                {"task": a.task, "budget": a.budget, "label": a.spec.label, "seed": a.seed, "hash": a.hash}
                for a in arms
            ],
        }

    def _planned(
        self, setup: Setup, key: tuple[str, str, str], spec: MethodSpec, budget: Budget | Literal["paper"]
    ) -> tuple[MethodSpec, ArmPlan]:
        """Returns the method and its plan, with the options and the training settings that tuning chose."""
        chosen, known = self.chosen.get(key, {}), {f.name for f in fields(TrainingSettings)}
        spec = spec.given(**{name: value for name, value in chosen.items() if name not in known})
        settings = {name: value for name, value in chosen.items() if name in known}
        return spec, setup.plan(spec, budget, self.named_settings | settings)

    def _check_length(self, plans: Mapping[tuple[str, str, str], ArmPlan]) -> None:
        """Raises UsageError, which names the longest arm's length, where all steps together take more than years."""
        steps = len(self.seeds) * sum(plan.budget.total_steps for plan in plans.values())
        if (years := steps // _STEPS_A_YEAR) >= _MOST_YEARS:
            (_, label, _), plan = max(plans.items(), key=lambda item: item[1].budget.total_steps)
            budget = self.budgets[label]
            sets_length = isinstance(budget, Budget) and budget.has_length
            arms = len(self.seeds) * len(plans)
            problem = f"makes {steps:,} steps in {arms:,} arms, {years:,} years at 1,000 a second"
            field, value = ("budget", label) if sets_length else ("epochs", plan.settings.epochs)
            raise UsageError.of(field, value, problem, "Train for less, or name fewer seeds and methods")

    def _arms(
        self,
        setups: Mapping[str, LazySetup],
        plans: Mapping[tuple[str, str, str], tuple[MethodSpec, ArmPlan]],
        fixed: dict[str, Any],
    ) -> list[StudyArm]:
        """Returns one arm per seed, task, budget and method, in the order of the tables."""
        arms: list[StudyArm] = []
        ordered = in_order(self.methods)
        for seed, task, budget in product(self.seeds, setups, self.budgets):
            cell: dict[str, StudyArm] = {}
            for asked, needed in ordered:
                spec, plan = plans[task, budget, asked.label]
                if plan.method.elsewhere:
                    plan = after_elsewhere(plan, seed, budget)
                config = setups[task].setup.arm_config(spec, plan, seed, fixed)
                if plan.budget.outcome is not None:
                    config["allocation"] = asdict(plan.budget.outcome)
                depends_on = None if needed is None else cell[needed]
                if depends_on is not None:
                    config["depends_on"] = {"label": depends_on.spec.label, "hash": depends_on.hash}
                name = ", ".join([task] * (len(setups) > 1) + [budget] * (len(self.budgets) > 1) + [spec.label])
                until = third(plan.budget.total_steps) if (task, budget, asked.label) in self.paused else None
                cell[spec.label] = StudyArm(task, budget, spec, seed, plan, config, name, depends_on, until)
            arms += [cell[spec.label] for spec in self.methods]
        return arms


def in_order(specs: Sequence[MethodSpec]) -> list[tuple[MethodSpec, str | None]]:
    """Returns the methods, each with the label of the method it depends on, which comes before it.

    Raises UsageError for a label that is not in the study, or methods that depend on each other.
    """
    needs = {s.label: s.needs for s in specs}
    depth: dict[str, int] = {}
    for label in needs:
        chain = [label]
        while (needed := needs[chain[-1]]) is not None:
            if needed in chain:
                circle = " on ".join([*chain[chain.index(needed) :], needed])
                cure = "Let one of them depend on another method"
                raise UsageError.of("methods", circle, "depend on each other", cure)
            if needed not in needs:
                others = ", ".join(other for other in needs if other != chain[-1]) or "no other method"
                cure = f"Add {needed} to methods, or depend on a method of the study ({others})"
                raise UsageError.of(f"{chain[-1]} depends on", needed, "is not a method of this study", cure)
            chain.append(needed)
        depth[label] = len(chain)
    return [(s, needs[s.label]) for s in sorted(specs, key=lambda s: depth[s.label])]
