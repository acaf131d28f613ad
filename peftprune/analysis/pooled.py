"""Results over several tasks: pairs pooled over tasks and seeds, and average ranks."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from peftprune import stats
from peftprune.analysis.differences import Reached, adjusted_rows, columns
from peftprune.analysis.predictions import measure
from peftprune.analysis.runs import exempt
from peftprune.stats.validation import Floats
from peftprune.study.stored_study import StoredStudy

POOLED = [
    *("budget", "method", "baseline", "tasks", "pairs", "gain", "low", "high"),
    *("effect_size", "probability", "p", "p_holm", "low_holm", "high_holm", "pairs_needed", "verdict"),
]
_OPEN = (stats.Verdict.NOT_DISTINGUISHABLE, stats.Verdict.UNDECIDED, stats.Verdict.CANNOT_REACH_SIGNIFICANCE)
RANKS = ["budget", "method", "average_rank", "tasks", "critical_difference", "friedman_p"]


def pooled(
    study: StoredStudy,
    runs: pd.DataFrame,
    baseline: str,
    margins: Mapping[str, float] | None = None,
    reached: Mapping[tuple[str, str, str], Reached] | None = None,
) -> pd.DataFrame:
    """Returns each method's gain over the baseline, over all pairs of runs that share task and seed.

    One row per budget and method; methods that do not meet the budget are left out. `gain` is the mean difference in
    the tasks' primary metrics, with the sign such that more is better; `effect_size` is Hedges' g_z; `probability` is
    the probability that a run beats a run of the baseline on the same task; p comes from `stats.paired_permutation` and
    is corrected by Holm over the methods of a budget. The ends of the interval, `low` and `high` at 95 % and `low_holm`
    and `high_holm` at the level of `stats.adjust`, come from the same test (`stats.permutation_interval`) and are
    infinite where it cannot reject. `pairs_needed` is the number of pairs that detects a gain of the observed size with
    a power of 0.8 at the row's level, NaN where the verdict needs none; `verdict` is a `stats.Verdict`. All pairs have
    equal weight, whatever the task's size or metric: the result describes these tasks, not new ones. A margin that all
    primary metrics share holds for the gain, with columns as in `against`. In a study in rounds, a method has the pairs
    of the last look that every task has reached, and adjusted p and interval hold over the looks.
    """
    rows = []
    primary = {(margins or {}).get(metric) for metric in study.primary.values()}
    margin = primary.pop() if len(primary) == 1 else None
    for budget in study.budgets:
        scores = _scores(study, runs, budget)
        tested: list[dict[str, Any]] = []
        pairs: list[tuple[stats.Look, Floats, Floats]] = []
        for method in [m for m in study.methods if m not in exempt(runs[runs["budget"] == budget])]:
            known = [(reached or {}).get((t, budget, m), Reached()) for t in study.tasks for m in (method, baseline)]
            look, seeds, *_ = min(known, key=lambda one: one.seeds)
            both = scores[[method, baseline]].dropna()
            both = both[both.index.get_level_values("seed") < seeds]
            if method == baseline or both.empty:
                continue
            a, b = both[method].to_numpy(), both[baseline].to_numpy()
            low, high = stats.permutation_interval(a, b)
            by_task = [stats.probability_of_improvement(t[method], t[baseline]) for _, t in both.groupby(level="task")]
            key = {"budget": budget, "method": method, "baseline": baseline, "tasks": len(by_task), "pairs": len(both)}
            gain = {"gain": float((a - b).mean()), "low": low, "high": high, "effect_size": stats.effect_size(a, b)}
            test = {"probability": float(np.mean(by_task)), "p": stats.paired_permutation(a, b)}
            tested.append({**key, **gain, **test})
            pairs.append((look, a, b))
        one_sided = [(partial(_p_beyond, *pair, 1), partial(_p_beyond, *pair, -1)) for pair in pairs]
        p = [look.overall(row["p"]) for row, (look, _, _) in zip(tested, pairs, strict=True)]
        decided = adjusted_rows(p, margin, one_sided, True)
        for row, (look, a, b), (level, adjusted) in zip(tested, pairs, decided, strict=True):
            outcome = stats.verdict(
                row["gain"],
                adjusted["p_holm"],
                row["pairs"],
                smallest_p=look.overall(stats.smallest_permutation_p(row["pairs"])),
                comparisons=len(tested),
                p_not_worse=adjusted.get("p_not_worse"),
                p_equivalent=adjusted.get("p_equivalent"),
            )
            nominal = look.nominal(level)
            low, high = stats.permutation_interval(a, b, nominal) if nominal else (-math.inf, math.inf)
            open_ = outcome in _OPEN and len(a) > 1
            needed = stats.pairs_needed(row["gain"], (a - b).std(ddof=1), alpha=level) if open_ else math.nan
            interval = {"low_holm": low, "high_holm": high}
            rows.append(row | adjusted | interval | {"pairs_needed": needed, "verdict": outcome})
    return pd.DataFrame(rows, columns=columns(POOLED, {} if margin is None else margins))


def _p_beyond(look: stats.Look, a: Floats, b: Floats, side: int, value: float) -> float:
    """Returns twice the one-sided p of sign flips that the gain is above a value (side 1) or below it (side -1)."""
    return look.overall(stats.paired_permutation(a - value, b)) if side * ((a - b).mean() - value) > 0 else 1.0


def average_ranks(study: StoredStudy, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns each method's rank by its mean primary metric (1 is best), averaged over tasks.

    One row per budget and method that meets it and finished every task; empty for fewer than two tasks.
    `critical_difference` is Nemenyi's at 0.05: methods whose average ranks are closer are not distinguishable;
    `friedman_p` tests whether any methods differ, NaN for fewer than three methods.
    """
    rows = []
    for budget in study.budgets:
        means = _scores(study, runs, budget).groupby(level="task").mean()
        means = means.reindex(index=study.tasks).dropna(axis=1)
        means = means.drop(columns=exempt(runs[runs["budget"] == budget]), errors="ignore")
        if len(means) < 2 or means.shape[1] < 2:
            continue
        values = means.to_numpy()
        difference = stats.critical_difference(values.shape[1], len(values))
        p = stats.friedman(values).p if values.shape[1] > 2 else math.nan
        shared = {"tasks": len(values), "critical_difference": difference, "friedman_p": p}
        for method, rank in zip(means.columns, stats.average_ranks(values), strict=True):
            rows.append({"budget": budget, "method": method, "average_rank": float(rank), **shared})
    return pd.DataFrame(rows, columns=RANKS)


def _scores(study: StoredStudy, runs: pd.DataFrame, budget: str) -> pd.DataFrame:
    """Returns (task, seed) × methods of one budget: primary metrics, signed so that more is better; NaN if missing."""
    part = runs[runs["budget"] == budget]
    signs = {t: 1 if measure(study, t, metric).higher_is_better else -1 for t, metric in study.primary.items()}
    score = [signs[row["task"]] * float(row[study.primary[row["task"]]]) for _, row in part.iterrows()]
    table = part.assign(score=score).pivot(index=["task", "seed"], columns="method", values="score")
    return table.reindex(columns=study.methods)
