"""Describes methods as plain values, from what their classes declare and what they plan. Imports no torch."""

import inspect
import re
from dataclasses import MISSING, Field, fields
from typing import Any

from peftprune.errors import PeftPruneError
from peftprune.methods.registry import load, names
from peftprune.strategy import ArmBudget, Baseline, Method, RankPruningStrategy
from peftprune.strategy.options import range_in_words
from peftprune.strategy.phases import phase_ranges
from peftprune.strategy.sites import SiteShape, rank_cost

_SITES = [SiteShape(f"layer.{i}.{kind}", i, kind, 768, 768) for i in range(12) for kind in ("query", "value")]
_BUDGET = ArmBudget(params=8 * sum(s.unit_cost for s in _SITES), total_steps=1000, num_examples=10_000, batch_size=32)
EXAMPLE = "rank 8 at query and value of 12 layers of width 768, 1,000 steps over 10,000 examples in batches of 32"
"""The example that `plan` is about."""


def describe_methods() -> list[dict[str, Any]]:
    return [describe_method(name) for name in names()]


def describe_method(name: str) -> dict[str, Any]:
    """Describes a registered method.

    Beside what the class declares, `kind` is "strategy" or "baseline", `summary` and `description` are its
    documentation, and `plan` is what `planned` returns, or `error` alone where it cannot plan the example.
    """
    cls = load(name)
    year = re.search(r"\b(?:19|20)\d\d\b", cls.source)
    summary, _, description = (inspect.getdoc(cls) or "").partition("\n\n")
    return {
        "name": name,
        "year": int(year[0]) if year else None,
        "source": cls.source,
        "kind": "baseline" if cls.prepares_model else "strategy",
        "prunes": cls.prunes,
        "decides": list(cls.decides),
        "actions": list(cls.actions),
        "signals": sorted(cls.signals),
        "exemption": cls.exemption,
        "summary": summary.replace("\n", " "),
        "description": description,
        "plan": planned(cls),
        "options": [_option(field) for field in fields(cls.Config)],
    }


def planned(cls: Any) -> dict[str, Any]:
    """Describes what a method plans with its default options for `EXAMPLE`.

    `phases`: name, kind and steps of each. `initial_size`: parameters at the start over those of the budget, None
    without adapters. `frozen`: factors that are not trained. `gate`: "none", "rank" or "site". `penalty`,
    `multipliers`: whether the method has a training penalty, and multipliers on components that vary over steps.
    """
    try:
        method = cls()
        spec = method.spec(_SITES, _BUDGET)
        phases = phase_ranges(method.phases(_BUDGET), _BUDGET)
    except Exception as error:
        # A method of another package must not break the listing of all methods.
        return {"error": str(error) if isinstance(error, PeftPruneError) else f"{type(error).__name__}: {error}"}
    size = rank_cost(spec.ranks, _SITES) + spec.fixed_params
    return {
        "phases": [{"name": p.name, "kind": p.phase.kind, "steps": p.steps} for p in phases],
        "initial_size": round(size / _BUDGET.params, 2) if size else None,
        "frozen": [name for name in ("A", "B") if name in spec.groups and not spec.groups[name].trained],
        "gate": spec.gate,
        "penalty": cls.penalty not in (RankPruningStrategy.penalty, Baseline.penalty),
        "multipliers": cls.before_step is not Method.before_step,
    }


def _option(field: Field[Any]) -> dict[str, Any]:
    return {
        "name": field.name,
        "default": None if field.default is MISSING else field.default,
        "range": range_in_words(field),
        "source": field.metadata.get("source", ""),
        "help": field.metadata.get("help", ""),
    }
