"""What `peftprune plan` and `peftprune methods` show, as plain values."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from peftprune.architectures.discover import discover_sites, head_modules
from peftprune.budget import parse_budget
from peftprune.errors import UsageError
from peftprune.ledger import trained_tensors
from peftprune.methods import load, names, parse
from peftprune.models import describe
from peftprune.planning import ArmPlan, plan_arm
from peftprune.strategy import Baseline, Mark, RankPruningStrategy
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
    shape = describe(model, num_labels=len(info.label_names or (None,)), kind=info.kind)
    head = head_modules(shape)
    in_head = {id(p) for name in head for p in shape.get_submodule(name).parameters()}
    sizes = [(p.numel(), id(p) in in_head) for p in shape.parameters()]
    shapes = discover_sites(shape, target_modules)
    plans = [
        plan_arm(
            spec,
            shapes,
            budget_,
            given,
            num_examples=examples,
            base_parameters=sum(n for n, inside in sizes if not inside),
            task=task,
        )
        for spec in specs
    ]
    in_all = sum(n for n, inside in sizes if inside)
    return {plan.label: plan.as_dict(in_all, _baseline_params(plan, shape, head)) for plan in plans}


def _baseline_params(plan: ArmPlan, shape: Any, head: Sequence[str]) -> int | None:
    """What a baseline trains outside the head, counted from the model it prepares without weights; else None."""
    if not isinstance(plan.method, Baseline):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        model = plan.method.prepare(copy.deepcopy(shape).requires_grad_(False), plan.preparation(head, seed=0))
    return sum(p.numel() for p in trained_tensors(model, head)[0])


_SAID_BY: dict[Mark, str] = {
    "paper": r"stated in the paper|the paper says|paper states|paper's own|as the paper|the paper counts",
    "authors' code": r"authors' code|released (code|run|score)|by its code",
    "secondary summary": r"secondary summar",
    "convention of ours": r"conventions? of ours|controls? of ours",
}


def describe_methods() -> list[dict[str, Any]]:
    """One entry a registered method: what `describe_method` says, and `observed`: what it was seen to do.

    See `peftprune.probe` for the latter.
    """
    from peftprune.probe import capabilities

    observed = capabilities(names())
    return [describe_method(name) | {"observed": observed[name]} for name in names()]


def describe_method(name: str) -> dict[str, Any]:
    """What a registered method states of itself.

    Returns:
        `name`, `year`, `source`, `kind` ("strategy" or "baseline"), `prunes`, `signals`, `summary`; `options` with
        default, the default's origin (`mark`) and meaning; `claims`: the sentences of its documentation that say where
        something comes from, with the `marks` they carry.
    """
    cls = load(name)
    strategy = issubclass(cls, RankPruningStrategy)
    year = re.search(r"\b(?:19|20)\d\d\b", cls.source)
    return {
        "name": name,
        "year": int(year[0]) if year else None,
        "source": cls.source,
        "kind": "strategy" if strategy else "baseline",
        "prunes": cls.prunes,
        "signals": sorted(cls.signals) if strategy else [],
        "summary": (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " "),
        "options": [
            {"name": f.name, "default": f.default, **{k: f.metadata.get(k, "") for k in ("mark", "help")}}
            for f in fields(cls.Config)
        ],
        "claims": _claims(cls),
    }


def _claims(cls: type) -> list[dict[str, Any]]:
    """The sentences of a class's documentation that say where something comes from, word for word."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    # A number before a full stop is an item of a list, not the end of a sentence.
    sentences = re.split(r"(?<=[^\d][.?!:)])\s+(?=[A-Z\d])", text)
    marked = ((s, [mark for mark, said in _SAID_BY.items() if re.search(said, s)]) for s in sentences)
    return [{"text": sentence, "marks": marks} for sentence, marks in marked if marks]
