"""Several tasks together: pairs pooled over tasks and seeds, and average ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from peftprune import stats
from peftprune.analysis.predictions import measure
from peftprune.analysis.runs import arm_rows

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy

POOLED = [
    "budget",
    "method",
    "baseline",
    "tasks",
    "pairs",
    "gain",
    "low",
    "high",
    "effect_size",
    "probability",
    "p",
    "p_holm",
    "verdict",
]
RANKS = ["budget", "method", "average_rank", "tasks", "critical_difference", "friedman_p"]


def pooled(comparison: StoredStudy, baseline: str | None = None) -> pd.DataFrame:
    """Each method against the baseline over all pairs of runs that share task and seed, one row a budget and method.

    `gain` is the mean difference in the tasks' primary metrics, turned so that more is better, with Student's 95 %
    interval; `effect_size` is Hedges' g_z; `probability` that of a run beating the baseline's on the same task; p comes
    from `stats.paired_permutation` and is corrected by Holm over the methods of a budget. Pairs count alike, whatever
    the task's size or metric: the result speaks of these tasks, not of new ones.

    Args:
        comparison: a stored study.
        baseline: label of the method that the others are compared with; None takes the first one.
    """
    baseline = comparison.baseline_label(baseline)
    rows = []
    for budget in comparison.budgets:
        scores = _scores(comparison.only(budget=budget))
        tested: list[dict[str, Any]] = []
        for method in comparison.methods:
            both = scores[[method, baseline]].dropna() if {method, baseline} <= set(scores.columns) else pd.DataFrame()
            if method == baseline or both.empty:
                continue
            a, b = both[method].to_numpy(), both[baseline].to_numpy()
            spread = stats.summary(a - b)
            by_task = [stats.probability_of_improvement(t[method], t[baseline]) for _, t in both.groupby(level="task")]
            tested.append(
                {
                    "budget": budget,
                    "method": method,
                    "baseline": baseline,
                    "tasks": len(by_task),
                    "pairs": len(both),
                    "gain": spread.mean,
                    "low": spread.low,
                    "high": spread.high,
                    "effect_size": stats.effect_size(a, b),
                    "probability": float(np.mean(by_task)),
                    "p": stats.paired_permutation(a, b),
                }
            )
        for row, p in zip(tested, stats.holm([row["p"] for row in tested]), strict=True):
            least = stats.smallest_permutation_p(row["pairs"])
            words = stats.verdict(
                row["gain"], float(p), row["pairs"], smallest_p=least, comparisons=len(tested)
            ).replace("seed", "pair")
            rows.append(row | {"p_holm": float(p), "verdict": words})
    return pd.DataFrame(rows, columns=POOLED)


def average_ranks(comparison: StoredStudy) -> pd.DataFrame:
    """Each method's rank by its mean primary metric (1 is best), averaged over tasks; one row a budget and method.

    Only methods that finished every task are ranked. `critical_difference` is Nemenyi's at 0.05: average ranks closer
    than that cannot be told apart; `friedman_p` tests whether any methods differ, NaN for fewer than three methods.
    Empty for fewer than two tasks.

    Args:
        comparison: a stored study.
    """
    rows = []
    for budget in comparison.budgets:
        cell = comparison.only(budget=budget)
        means = _scores(cell).groupby(level="task").mean()
        means = means.reindex(index=cell.tasks).dropna(axis=1)
        if len(means) < 2 or means.shape[1] < 2:
            continue
        values = means.to_numpy()
        difference = stats.critical_difference(values.shape[1], len(values))
        p = stats.friedman(values).p if values.shape[1] > 2 else math.nan
        rows += [
            {
                "budget": budget,
                "method": method,
                "average_rank": float(rank),
                "tasks": len(values),
                "critical_difference": difference,
                "friedman_p": p,
            }
            for method, rank in zip(means.columns, stats.average_ranks(values), strict=True)
        ]
    return pd.DataFrame(rows, columns=RANKS)


def _scores(part: StoredStudy) -> pd.DataFrame:
    """(task, seed) × methods of one budget: primary metrics, turned so that more is better; NaN where not finished."""
    runs = arm_rows(part)
    signs = {
        task: 1 if measure(part.only(task=task), metric).higher_is_better else -1
        for task, metric in part.primary.items()
    }
    score = [signs[row["task"]] * float(row[part.primary[row["task"]]]) for _, row in runs.iterrows()]
    table = runs.assign(score=score).pivot(index=["task", "seed"], columns="method", values="score")
    return table.reindex(columns=part.methods)
