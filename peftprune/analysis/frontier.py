"""Quality against parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from peftprune.analysis.predictions import measure
from peftprune.analysis.runs import arm_rows, method_rows
from peftprune.plots import pareto_set

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy

COLUMNS = ["task", "budget", "method", "metric", "params", "mean", "low", "high", "seeds", "pareto"]


def frontier(comparison: StoredStudy) -> pd.DataFrame:
    """The primary metric of every method and budget beside its final adapter parameters.

    One row a task, budget and method that finished at least one seed. `low` and `high` are the ends of Student's 95 %
    interval of the mean, NaN for one seed. `pareto` marks the points of a task that no other point of it beats: at
    least as good with at most as many parameters, and strictly so in one of the two. Methods that met one budget count
    as equally large, since whole ranks leave each of them within one unit of rank below it.

    Args:
        comparison: a stored study.
    """
    table, runs = method_rows(comparison), arm_rows(comparison)
    allowed = runs[runs["exemption"].isna()].groupby(["task", "budget"])["budget_params"].max()
    rows = []
    for task, metric in comparison.primary.items():
        higher = measure(comparison.only(task=task), metric).higher_is_better
        found = table[(table["task"] == task) & (table["seeds"] > 0)]
        sizes = [_size(row, allowed) for _, row in found.iterrows()]
        best = pareto_set(sizes, found[f"{metric}_mean"].tolist(), higher_is_better=higher)
        for (_, row), unbeaten in zip(found.iterrows(), best, strict=True):
            rows.append(
                {
                    "task": task,
                    "budget": row["budget"],
                    "method": row["method"],
                    "metric": metric,
                    "params": float(row["final_params"]),
                    **{name: row[f"{metric}_{name}"] for name in ("mean", "low", "high")},
                    "seeds": row["seeds"],
                    "pareto": bool(unbeaten),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _size(row: pd.Series[Any], allowed: pd.Series[float]) -> float:
    """What was allowed where the budget binds, else what was used."""
    bound = row["budget"] != "paper" and not row.get("exemption")
    return float(allowed[row["task"], row["budget"]] if bound else row["final_params"])
