"""Paired differences of every method to a baseline, on the same seeds and examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from peftprune.analysis.predictions import Measure, Predictions, measure, predictions, sample
from peftprune.analysis.runs import in_cell
from peftprune.stats import (
    PairedDifference,
    Verdict,
    adjust,
    detectable_from,
    effect_size,
    paired_bootstrap,
    probability_of_improvement,
    seeds_needed,
    verdict,
)
from peftprune.stats.metrics import METRICS
from peftprune.study.stored_study import StoredStudy

COLUMNS = [
    *("task", "budget", "method", "baseline", "metric", "seeds", "difference", "low", "high", "p", "p_holm"),
    *("low_holm", "high_holm", "effect_size", "probability", "detectable", "seeds_needed", "verdict"),
]
MARGIN = ["margin", "p_not_worse", "p_equivalent"]
"""Further columns where a metric has a margin."""
_RESAMPLES = 10_000
_SLOW_RESAMPLES = 500
"""For metrics that are recomputed on each resample."""


def against(
    study: StoredStudy, runs: pd.DataFrame, baseline: str, margins: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Returns paired differences to the baseline, one row per task, budget, method and metric (see `COLUMNS`).

    The interval and p come from `stats.paired_bootstrap`, which resamples examples and seeds together; p is corrected
    by Holm over the methods of a task and budget, for each metric (`p_holm`). `low_holm` and `high_holm` are the ends
    of the interval at the level of `stats.adjust`, so it excludes 0 exactly where `p_holm` is at most 0.05; `low`
    and `high` are those of the 95 % interval of the row alone. `effect_size` is Hedges' g_z of the scores paired by
    seed, NaN below three seeds; `probability` is the probability that a run of the method scores above a run of the
    baseline; `detectable` is the smallest true difference that a study of this size detects with a power of 0.8, NaN
    where the two agree on every example; `seeds_needed` is the number of seeds that detects a difference of the
    observed size at the row's level with that power, infinite where only more examples can, NaN where the verdict needs
    none or one seed does not show it. With one seed, p, interval and detectable difference describe the two trained
    models, not the methods, and readers see no p. `verdict` is a `stats.Verdict`.

    Metrics with a margin also have `margin`, and the adjusted p of the verdicts that it allows, `p_not_worse` and
    `p_equivalent`: twice the one-sided ones, to be compared with 0.05. All tests of a metric's methods are one family.
    """
    rows = []
    for cell in study.cells():
        (task,), (budget,) = cell.tasks, cell.budgets
        stored, scores = predictions(cell), in_cell(runs, cell).set_index(["method", "seed"])
        others = [m for m in cell.methods if m != baseline and stored[m].keys() & stored[baseline].keys()]
        for metric in cell.metrics:
            what = measure(cell, task, metric)
            found = [_row(method, baseline, what, stored, scores[metric]) for method in others]
            smallest_p = 2 / (1 + _resamples(what.name))
            tests: list[PairedDifference] = [row.pop("tested") for row in found]
            margin = (margins or {}).get(metric)
            decided = adjusted_rows(
                [t.p for t in tests], margin, [(t.p_above, t.p_below) for t in tests], what.higher_is_better
            )
            for row, tested, (level, adjusted) in zip(found, tests, decided, strict=True):
                outcome = verdict(
                    row["difference"],
                    adjusted["p_holm"],
                    row["seeds"],
                    smallest_p=smallest_p,
                    comparisons=len(found),
                    higher_is_better=what.higher_is_better,
                    p_not_worse=adjusted.get("p_not_worse"),
                    p_equivalent=adjusted.get("p_equivalent"),
                )
                low, high = tested.interval(level)
                open_ = outcome in (Verdict.NOT_DISTINGUISHABLE, Verdict.UNDECIDED)
                needed = seeds_needed(tested, alpha=level) if open_ else math.nan
                place = {"task": task, "budget": budget, "metric": metric, "low_holm": low, "high_holm": high}
                rows.append(place | row | adjusted | {"seeds_needed": needed, "verdict": outcome})
    return pd.DataFrame(rows, columns=columns(COLUMNS, margins))


def columns(names: list[str], margins: Mapping[str, float] | None) -> list[str]:
    """Returns the columns of a frame, with those of the margin before the verdict where there is any."""
    return [*names[:-1], *MARGIN, names[-1]] if margins else names


OneSided = tuple[Callable[[float], float], Callable[[float], float]]
"""Doubled one-sided p that the difference is above a value, and below it."""


def adjusted_rows(
    p: Sequence[float], margin: float | None, one_sided: Sequence[OneSided], higher_is_better: bool
) -> list[tuple[float, dict[str, float]]]:
    """Returns the level of each row's interval and its adjusted p values, by column; see `stats.adjust`."""
    if margin is None:
        found = adjust(p)
        return [(float(level), {"p_holm": float(q)}) for level, q in zip(found.levels, found.p, strict=True)]
    found = adjust(p, [above(-margin) for above, _ in one_sided], [below(margin) for _, below in one_sided])
    assert found.p_above is not None
    assert found.p_below is not None
    not_worse = found.p_above if higher_is_better else found.p_below
    equivalent = np.maximum(found.p_above, found.p_below)
    return [
        (float(level), {"p_holm": float(q), "margin": margin, "p_not_worse": float(n), "p_equivalent": float(e)})
        for level, q, n, e in zip(found.levels, found.p, not_worse, equivalent, strict=True)
    ]


def _row(method: str, baseline: str, what: Measure, stored: Predictions, scores: pd.Series[float]) -> dict[str, Any]:
    seeds = sorted(stored[method].keys() & stored[baseline].keys())
    a, b = ([sample(stored[label][seed], what) for seed in seeds] for label in (method, baseline))
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
        **{name: getattr(found, name) for name in ("difference", "low", "high", "p")},
        "effect_size": effect_size(ours, theirs),
        "probability": probability_of_improvement(ours, theirs),
        # Two methods that agree on every example show no noise to estimate.
        "detectable": detectable_from(found) if found.example_std > 0 else math.nan,
        "tested": found,
    }


def _resamples(name: str) -> int:
    return _SLOW_RESAMPLES if METRICS[name].sums is None else _RESAMPLES
