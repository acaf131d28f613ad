"""Frames of the search for each method's settings: its trials, what they chose and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from peftprune.errors import UsageError
from peftprune.study.store import STOPPED, TRIALS
from peftprune.study.stored_study import StoredStudy
from peftprune.study.tuning import trial_point

CELL = ["task", "budget", "method"]
_COSTS = ("steps", "flops", "seconds")
_CHOICE = ("trial", "score", "at_default", "edge", "trials", "stopped")


def trials(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per trial of the study's methods; empty where nothing was tuned.

    `score` is the primary metric on the validation data, `option` the method's own option with its value, `status` is
    "done", "diverged", "pending" or "stopped at a third", of which score and costs are those of that third; `chosen`
    tells whether the final arms have the trial's settings. `steps`, `flops` and `seconds` are those of the trial.
    """
    columns = [*CELL, "learning_rate", "option", "seed", "score", *_COSTS, "status", "chosen"]
    chosen = _choices(study)
    if not chosen:
        return pd.DataFrame(columns=columns)
    try:
        searched = StoredStudy.load(study.path / TRIALS).snapshot()
    except UsageError:
        return pd.DataFrame(columns=columns)
    rows: list[dict[str, Any]] = []
    for key, folder in searched.arms():
        method, rate, option = trial_point(key["method"])
        choice = chosen.get((key["task"], key["budget"], method))
        if choice is None:
            continue
        result, diverged = folder.result(), bool((folder.error() or {}).get("diverged"))
        row = {"task": key["task"], "budget": key["budget"], "method": method, "learning_rate": rate, "option": option}
        row |= {"seed": key["seed"], "status": "done", "chosen": key["method"] == choice["trial"]}
        spent = result or folder.paused()
        if result is None:
            row["status"] = "diverged" if diverged else "pending" if spent is None else STOPPED
        if spent is not None:
            row["score"] = None if diverged else spent["metrics"][searched.primary[key["task"]]]
            row |= {name: spent["ledger"][name] for name in _COSTS}
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def choices(study: StoredStudy, found: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per task, budget and method: what was chosen, its validation score, and the cost of its trials.

    `at_default` is the validation score at the learning rate of an untuned study, where that was among the points, and
    `edge` is "low" or "high" where no rate beyond the chosen one was tried on that side. `stopped`, in a search by
    halving, counts the points that stopped at a third of their steps. `found` are the `trials`.
    """
    rows = []
    for key, choice in _choices(study).items():
        _, rate, option = trial_point(choice["trial"])
        row = {**dict(zip(CELL, key, strict=True)), "learning_rate": rate, "option": option}
        rows.append(row | {name: choice.get(name) for name in _CHOICE})
    spent = found.groupby(CELL)[list(_COSTS)].sum().add_prefix("tuning_")
    frame = pd.DataFrame(rows, columns=[*CELL, "learning_rate", "option", *_CHOICE]).merge(spent, "left", CELL)
    return frame if frame["stopped"].any() else frame.drop(columns="stopped")


def trial_means(found: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per method and point of one cell's `trials`, with the mean `score` over the tuning seeds.

    A point where a seed diverged has the lowest score of the cell.
    """
    scores = found["score"].astype(float).fillna(-np.inf)
    means = found.assign(score=scores).groupby(["method", "learning_rate", "option"], sort=False)["score"].mean()
    finite = means[np.isfinite(means)]
    return means.where(np.isfinite(means), finite.min()).reset_index()


def expected_best(scores: Sequence[float]) -> list[float]:
    """Returns, for k = 1 … n, the expected best of k of the n scores that are drawn without replacement.

    The share of draws whose best is among the i lowest scores is C(i, k) / C(n, k).
    """
    ranked, count = np.sort(scores), len(scores)
    among, share, found = np.arange(count + 1), np.ones(count + 1), []
    for k in range(count):
        share = share * np.maximum(among - k, 0) / (count - k)
        found.append(float(np.diff(share) @ ranked))
    return found


def half_decades(found: pd.DataFrame) -> pd.Series[float]:
    """Returns, by method, the half-decades of learning rate within one standard error of the best mean score.

    `found` are one cell's `trials`; with one tuning seed nothing is returned. The standard error is that of the mean at
    a method's best point, with the methods' variances averaged. Between the rates that were tried the best scores of a
    method's own option are interpolated, on a logarithmic axis; beyond them nothing counts.
    """
    means = trial_means(found)
    best = means.loc[means.groupby("method", sort=False)["score"].idxmax(), ["method", "learning_rate", "option"]]
    spread = found.merge(best).groupby("method")["score"].agg(["var", "count"])
    error = np.sqrt(spread["var"].mean() / spread["count"].max())
    widths = {}
    for method, rows in means.groupby("method", sort=False):
        scores = rows.groupby("learning_rate")["score"].max()
        least, ends = scores.max() - error, np.stack([scores.iloc[:-1], scores.iloc[1:]])
        low, high = ends.min(axis=0), ends.max(axis=0)
        inside = np.where(low >= least, 1.0, np.clip((high - least) / np.where(high > low, high - low, 1.0), 0, 1))
        widths[str(method)] = float(inside @ np.diff(np.log10(scores.index))) / 0.5
    return pd.Series({} if np.isnan(error) else widths, dtype=float)


def with_choices(table: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of methods with the tuned settings and the cost of their search; unchanged without tuning."""
    if chosen.empty:
        return table
    renamed = {"score": "validation", "at_default": "validation_at_default"}
    return table.merge(chosen.drop(columns="trial").rename(columns=renamed), on=CELL, how="left")


def _choices(study: StoredStudy) -> dict[tuple[str, str, str], dict[str, Any]]:
    rows = (study.request.get("tuning") or {}).get("chosen", [])
    known = {(a["task"], a["budget"], a["label"]) for a in study.request["arms"]}
    return {key: row for row in rows if (key := (row["task"], row["budget"], row["label"])) in known}
