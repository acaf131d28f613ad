"""Every method of a stored study against a baseline, on the same seeds and the same examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from peftprune.analysis.predictions import Measure, Predictions, given, measure, predictions
from peftprune.analysis.runs import arm_rows
from peftprune.stats import detectable_from, effect_size, holm, paired_bootstrap, probability_of_improvement, verdict

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy

COLUMNS = [
    "task",
    "budget",
    "method",
    "baseline",
    "metric",
    "seeds",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "effect_size",
    "probability",
    "detectable",
    "verdict",
]
_RESAMPLES = 10_000
_SLOW_RESAMPLES = 500
"""For metrics that are recomputed for each replicate."""


def against(comparison: StoredStudy, baseline: str | None = None) -> pd.DataFrame:
    """Paired differences to the baseline, one row a task, budget, method and metric (see `COLUMNS`).

    The interval and p come from `stats.paired_bootstrap`, which resamples examples and seeds together; p is corrected
    over the methods of a task and budget by Holm's procedure for each metric. `effect_size` is Hedges' g_z of the
    scores paired by seed, NaN below three seeds; `probability` is that of a run of the method scoring above a run of
    the baseline; `detectable` is the smallest true difference that a study like this one finds with a power of 0.8,
    NaN where the two agree on every example. With one seed, interval and detectable difference speak of the two trained
    models, not of the methods.

    Args:
        comparison: a stored study.
        baseline: label of the method that the others are compared with; None takes the first one.
    """
    baseline = comparison.baseline_label(baseline)
    rows = []
    for cell in comparison.cells():
        stored, runs = predictions(cell), arm_rows(cell).set_index(["method", "seed"])
        for metric in cell.metrics:
            rows += _tested(cell, metric, baseline, stored, runs[metric])
    return pd.DataFrame(rows, columns=COLUMNS)


def _tested(
    cell: StoredStudy, metric: str, baseline: str, stored: Predictions, scores: pd.Series[float]
) -> list[dict[str, Any]]:
    what = measure(cell, metric)
    found = [
        _row(method, baseline, what, stored, scores)
        for method in cell.methods
        if method != baseline and stored[method].keys() & stored[baseline].keys()
    ]
    corrected = holm([row["p"] for row in found])
    place = {"task": cell.tasks[0], "budget": cell.budgets[0], "metric": metric}
    return [
        place
        | row
        | {
            "p_holm": float(p),
            "verdict": verdict(
                row["difference"],
                float(p),
                row["seeds"],
                smallest_p=2 / (1 + _resamples(what.name)),
                comparisons=len(found),
                higher_is_better=what.higher_is_better,
            ),
        }
        for row, p in zip(found, corrected, strict=True)
    ]


def _row(method: str, baseline: str, what: Measure, stored: Predictions, scores: pd.Series[float]) -> dict[str, Any]:
    seeds = sorted(stored[method].keys() & stored[baseline].keys())

    a, b = ([given(stored[label][seed], what) for seed in seeds] for label in (method, baseline))
    found = paired_bootstrap(
        [one.values for one in a],
        [one.values for one in b],
        references=a[0].references,
        metric=a[0].metric,
        resamples=_resamples(what.name),
    )
    ours, theirs = ([float(scores[label, seed]) for seed in seeds] for label in (method, baseline))
    return {
        "method": method,
        "baseline": baseline,
        "seeds": len(seeds),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "effect_size": effect_size(ours, theirs),
        "probability": probability_of_improvement(ours, theirs),
        # Two methods that agree on every example show no noise to reckon with.
        "detectable": detectable_from(found) if found.example_std > 0 else math.nan,
    }


def _resamples(name: str) -> int:
    return _SLOW_RESAMPLES if name == "spearman" else _RESAMPLES
