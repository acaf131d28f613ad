"""Frames of the search for each method's settings: its trials, what they chose and what they cost."""

from __future__ import annotations

from typing import Any

import pandas as pd

from peftprune.errors import UsageError
from peftprune.study.store import TRIALS
from peftprune.study.stored_study import StoredStudy
from peftprune.study.tuning import trial_point

CELL = ["task", "budget", "method"]
_COSTS = ("steps", "flops", "seconds")
_CHOICE = ("trial", "score", "at_default", "edge", "trials")


def trials(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per trial of the study's methods; empty where nothing was tuned.

    `score` is the primary metric on the validation data, `option` the method's own option with its value, `status` is
    "done", "diverged" or "pending", and `chosen` tells whether the final arms have the trial's settings. `steps`,
    `flops` and `seconds` are those of the trial.
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
        result = folder.result()
        row = {"task": key["task"], "budget": key["budget"], "method": method, "learning_rate": rate, "option": option}
        row |= {"seed": key["seed"], "status": "done", "chosen": key["method"] == choice["trial"]}
        if result is None:
            row["status"] = "diverged" if (folder.error() or {}).get("diverged") else "pending"
        else:
            row["score"] = result["metrics"][searched.primary[key["task"]]]
            row |= {name: result["ledger"][name] for name in _COSTS}
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def choices(study: StoredStudy, found: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per task, budget and method: what was chosen, its validation score, and the cost of its trials.

    `at_default` is the validation score at the learning rate of an untuned study, where that was among the points, and
    `edge` is "low" or "high" where no rate beyond the chosen one was tried on that side. `found` are the `trials`.
    """
    rows = []
    for key, choice in _choices(study).items():
        _, rate, option = trial_point(choice["trial"])
        row = {**dict(zip(CELL, key, strict=True)), "learning_rate": rate, "option": option}
        rows.append(row | {name: choice[name] for name in _CHOICE})
    spent = found.groupby(CELL)[list(_COSTS)].sum().add_prefix("tuning_")
    return pd.DataFrame(rows, columns=[*CELL, "learning_rate", "option", *_CHOICE]).merge(spent, "left", CELL)


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
