"""Ranks, loss and cost over the course of training, as the arms recorded them."""

from typing import Any

import pandas as pd

from peftprune.analysis.runs import KEY
from peftprune.study.stored_study import StoredStudy

_STATE = ["rank", "density", "shared_with", "components", "score"]
TRACE = [*KEY, "step", "phase", "reason", "site", "layer", "kind", *_STATE]
HISTORY = [*KEY, "step", "phase", "loss", "learning_rate"]
COSTS = [*KEY, "phase", "start", "stop", "seconds", "share"]


def trace(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per event of a finished arm and site that it changed or scored, with the site's state after it.

    `step` is 0 for the state before training, else the step (from 1) after which the event took place. `score` is the
    importance that the strategy recorded with the event, NaN if none; the method's docstring defines it. `density` is
    missing where nothing was zeroed, `components` where all initial components are left; `shared_with` is text,
    separated by commas.
    """
    rows: list[dict[str, Any]] = []
    for key, folder, result in study.finished():
        places = {s["site"]: {"layer": s["layer"], "kind": s["kind"]} for s in result["allocation"]}
        state: dict[str, dict[str, Any]] = {}
        for event in folder.allocation():
            state |= event["sites"]
            what = {name: event[name] for name in ("step", "phase", "reason")}
            for site in places:
                if site in event["sites"] or site in event["scores"]:
                    now = state[site] | {"shared_with": ",".join(state[site]["shared_with"])}
                    now["score"] = event["scores"].get(site)
                    rows.append({**key, **what, "site": site, **places[site], **now})
    return pd.DataFrame(rows, columns=TRACE).astype({"density": float, "score": float})


def history(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per logged step of a finished arm: mean training loss since the previous row, learning rate."""
    rows = []
    for key, folder, result in study.finished():
        for log in folder.history():
            if "loss" in log:
                phase = next(p["name"] for p in result["phases"] if log["step"] <= p["stop"])
                rows.append({**key, "phase": phase, **{n: log.get(n) for n in ("step", "loss", "learning_rate")}})
    return pd.DataFrame(rows, columns=HISTORY)


def costs(study: StoredStudy) -> pd.DataFrame:
    """Returns one row per phase of a finished arm, and one for its evaluation.

    `start` and `stop` are the phase's steps, stop excluded, missing for the evaluation; `share` is the phase's share of
    the arm's seconds. Seconds are comparable only between arms that ran on the same idle machine.
    """
    rows = []
    for key, _, result in study.finished():
        ledger = result["ledger"]
        # A phase has no seconds in an arm that trains nothing.
        seconds = ledger["phase_seconds"]
        spent = [
            {"phase": p["name"], "start": p["start"], "stop": p["stop"], "seconds": seconds.get(p["name"], 0.0)}
            for p in result["phases"]
        ]
        spent.append({"phase": "evaluation", "start": None, "stop": None, "seconds": ledger["evaluation_seconds"]})
        total = sum(row["seconds"] for row in spent)
        rows += [{**key, **row, "share": row["seconds"] / total} for row in spent]
    return pd.DataFrame(rows, columns=COSTS)
