"""Frames of arms, methods and sites, read from the stored results."""

from __future__ import annotations

from typing import Any

import pandas as pd

from peftprune.stats import summary
from peftprune.study.stored_study import StoredStudy

KEY = ["task", "budget", "method", "seed"]
SITES = [*KEY, "site", "layer", "kind", "rank", "density", "shared_with"]
LEDGER = ("final_params", "peak_params", "nonzero_params", "unique_params", "head_params", "flops", "seconds", "drift")


def arm_rows(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per arm: each metric, the ledger's totals, and the status ("done", "failed: why", "pending")."""
    rows = []
    for key, folder in study.arms():
        result = folder.result()
        row: dict[str, Any] = dict(key)
        if result is not None:
            row |= result["metrics"]
            row |= {name: result["ledger"].get(name) for name in LEDGER}
            row |= {"budget_params": result["budget"]["params"], "exemption": result["exemption"], "status": "done"}
        else:
            error = folder.error()
            row["status"] = "pending" if error is None else f"failed: {error['error']}"
        rows.append(row)
    columns = [*KEY, *study.metrics, *LEDGER, "budget_params", "exemption", "status"]
    return pd.DataFrame(rows, columns=columns).astype({"drift": "float64"})


def method_rows(study: StoredStudy, runs: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per task, budget and method: each metric over seeds, the ledger, and the status.

    For each metric `_mean`, `_std` (n − 1), and `_low` and `_high`, the bounds of Student's 95 % interval of the mean,
    which are NaN for one seed. `seeds` counts finished arms; ledger columns are means over them, integers where the
    mean is whole. With `budget="paper"`, the column `budget_difference` holds final parameters minus the reference
    budget; where a method is exempt from the budget, the column `exemption` holds the reason. With
    `select="paper"`, the column `selected_on` names the reported split.
    """
    rows = []
    for (task, budget, method), arms in runs.groupby(["task", "budget", "method"], sort=False):
        done = arms[arms["status"] == "done"]
        row: dict[str, Any] = {"task": task, "budget": budget, "method": method}
        for metric in study.metrics:
            values = done[metric].dropna().astype(float)
            found = summary(values.tolist()) if len(values) else None
            row |= {f"{metric}_{n}": getattr(found, n, None) for n in ("mean", "std", "low", "high")}
        row["seeds"] = len(done)
        row |= {name: _mean(done[name].dropna()) for name in LEDGER}
        if "paper" in study.budgets:
            off = _mean(done["final_params"] - done["budget_params"])
            row["budget_difference"] = off if budget == "paper" else None
        if study.request["settings"].get("select") == "paper":
            row["selected_on"] = "the reported split"
        if runs["exemption"].notna().any():
            row["exemption"] = next(iter(done["exemption"].dropna()), "")
        rows.append(row | {"status": _status(arms["status"])})
    dtypes = dict.fromkeys((f"{m}_{n}" for m in study.metrics for n in ("mean", "std", "low", "high")), "float64")
    for name in LEDGER:
        whole = all(isinstance(row[name], int | None) for row in rows)
        # Beside a method that has none yet, only pandas' own dtype keeps whole numbers.
        dtypes[name] = "Int64" if whole and any(row[name] is None for row in rows) else "int64" if whole else "float64"
    return pd.DataFrame(rows).astype(dtypes | {"drift": "float64"})


def site_rows(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per site of a finished arm: site, layer, kind, rank, density, shared_with.

    `density` is the share of the site's stored entries that are not zero; `shared_with` lists the sites that hold the
    same tensors, separated by commas, and is empty where there are none.
    """
    rows = [
        {**key, **site, "shared_with": ",".join(site["shared_with"])}
        for key, _, result in study.finished()
        for site in result["allocation"]
    ]
    return pd.DataFrame(rows, columns=SITES)


def ledger_rows(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per finished arm with every field of its ledger except the seconds per phase."""
    rows = [{**key, **result["ledger"]} for key, _, result in study.finished()]
    return pd.DataFrame(rows, columns=None if rows else KEY).drop(columns="phase_seconds", errors="ignore")


def exempt(runs: pd.DataFrame) -> set[str]:
    """Returns the methods that do not meet the budget of these runs; none where each has its published setting."""
    return set(runs.loc[runs["exemption"].notna() & (runs["budget"] != "paper"), "method"])


def in_cell(frame: pd.DataFrame, cell: StoredStudy) -> pd.DataFrame:
    """Returns the rows of a frame that belong to the task and budget of a cell; the index is kept."""
    return frame[(frame["task"] == cell.tasks[0]) & (frame["budget"] == cell.budgets[0])]


def _mean(values: pd.Series[Any]) -> int | float | None:
    if values.empty:
        return None
    mean = float(values.astype(float).mean())
    return int(mean) if mean.is_integer() else mean


def _status(statuses: pd.Series[str]) -> str:
    """Returns "done", or how many of a method's arms have not finished and why the first one failed."""
    open_ = [s for s in statuses if s != "done"]
    if not open_:
        return "done"
    failed = next((s for s in open_ if s.startswith("failed")), "pending")
    return failed if len(statuses) == len(open_) == 1 else f"{len(open_)} of {len(statuses)} {failed}"
