"""Quality against parameters."""

from __future__ import annotations

from typing import Any

import pandas as pd

from peftprune.analysis.predictions import measure
from peftprune.stats import pareto_set
from peftprune.study.stored_study import StoredStudy

COLUMNS = ["task", "budget", "method", "metric", "params", "mean", "low", "high", "seeds", "pareto"]


def frontier(study: StoredStudy, runs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the primary metric and final adapter parameters of each task, budget and method with a finished seed.

    `low` and `high` are the bounds of Student's 95 % interval of the mean, NaN for one seed. `pareto` marks the points
    of a task that no other point dominates: none is at least as good with at most as many parameters, and strictly
    better in one of the two. Methods within one budget count as equally large, since integer ranks leave each of them
    within one unit of rank below it.
    """
    allowed = runs[runs["exemption"].isna()].groupby(["task", "budget"])["budget_params"].max()
    rows = []
    for task, metric in study.primary.items():
        higher = measure(study, task, metric).higher_is_better
        found = table[(table["task"] == task) & (table["seeds"] > 0)]
        sizes = [_size(row, allowed) for _, row in found.iterrows()]
        best = pareto_set(sizes, found[f"{metric}_mean"].tolist(), higher_is_better=higher)
        for (_, row), unbeaten in zip(found.iterrows(), best, strict=True):
            point = {name: row[name] for name in ("task", "budget", "method", "seeds")}
            point |= {name: row[f"{metric}_{name}"] for name in ("mean", "low", "high")}
            rows.append(point | {"metric": metric, "params": float(row["final_params"]), "pareto": bool(unbeaten)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _size(row: pd.Series[Any], allowed: pd.Series[float]) -> float:
    """Returns the allowed parameters where the budget binds, else the final ones."""
    bound = row["budget"] != "paper" and not row.get("exemption")
    return float(allowed[row["task"], row["budget"]] if bound else row["final_params"])
