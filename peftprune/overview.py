"""What `peftprune plan` and `peftprune methods` show, as plain values."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from peftprune.architectures.discover import discover_sites, head_modules
from peftprune.budget import parse_budget
from peftprune.errors import UsageError
from peftprune.methods import load, names, parse
from peftprune.models import describe
from peftprune.planning import plan_arm
from peftprune.strategy import RankPruningStrategy
from peftprune.tasks import task_info


def plan_methods(
    methods: str | Sequence[Any],
    model: str | Path,
    budget: str,
    target_modules: str | Sequence[str],
    task: str,
    train_examples: int | None = None,
    **given: Any,
) -> dict[str, dict[str, Any]]:
    """Plan each method for a model known by its shape alone.

    Args:
        methods, budget, target_modules: as for `compare`.
        model: a folder, a config.json, a hub name, or a bundled architecture.
        task: gives training examples and classes; its data is not read.
        train_examples: instead of the task's number, at least 1.
        given: training settings that the user named.

    Returns:
        Label to `ArmPlan.as_dict`.

    Raises:
        UsageError: when something is unknown or the budget cannot be met.
    """
    specs, budget_ = parse(methods), parse_budget(budget)
    info = task_info(task)
    examples = info.train_size if train_examples is None else train_examples
    if examples < 1:
        raise UsageError.of("train_examples", examples, "is below 1", "Give 1 or more")
    shape = describe(model, num_labels=len(info.label_names or (None,)))
    head = head_modules(shape)
    in_head = {id(p) for name in head for p in shape.get_submodule(name).parameters()}
    sizes = [(p.numel(), id(p) in in_head) for p in shape.parameters()]
    shapes = discover_sites(shape, target_modules)
    return {
        spec.label: plan_arm(
            spec,
            shapes,
            budget_,
            given,
            num_examples=examples,
            base_parameters=sum(n for n, inside in sizes if not inside),
            task=task,
        ).as_dict(head_params=sum(n for n, inside in sizes if inside))
        for spec in specs
    }


def describe_methods() -> list[dict[str, Any]]:
    """One entry a registered method: name, source, what it prunes, signals, summary, and options with their marks."""
    described = []
    for name in names():
        cls = load(name)
        strategy = issubclass(cls, RankPruningStrategy)
        described.append(
            {
                "name": name,
                "source": cls.source,
                "prunes": cls.prunes if strategy else "nothing",
                "signals": sorted(cls.signals) if strategy else [],
                "summary": (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " "),
                "options": [
                    {"name": f.name, "default": f.default, **{k: f.metadata.get(k, "") for k in ("mark", "help")}}
                    for f in fields(cls.Config)
                ],
            }
        )
    return described
