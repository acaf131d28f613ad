"""The course of training: ranks, loss and cost, as the arms recorded them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy

_KEY = ["task", "budget", "method", "seed"]
_STATE = ["rank", "density", "shared_with", "components", "score"]
TRACE = [*_KEY, "step", "phase", "reason", "site", "layer", "kind", *_STATE]
HISTORY = [*_KEY, "step", "phase", "loss", "learning_rate"]
COSTS = [*_KEY, "phase", "start", "stop", "seconds", "share"]


def trace(comparison: StoredStudy) -> pd.DataFrame:
    """One row a finished arm, event and site that the event changed or scored, with the site's state after it.

    `step` is 0 for the state before training, else the step after which the event came (from 1). `score` is the
    importance that the strategy stated with the event, NaN for none; the method's docstring says what it means.
    `density` is missing where nothing was zeroed, `components` where all initial components are held; `shared_with` is
    text, separated by commas.

    Args:
        comparison: a stored study.
    """
    rows: list[dict[str, Any]] = []
    for key, folder in comparison.arms():
        result = folder.result()
        if result is None:
            continue
        places = {s["site"]: {"layer": s["layer"], "kind": s["kind"]} for s in result["allocation"]}
        state: dict[str, dict[str, Any]] = {}
        for event in folder.allocation():
            state |= event["sites"]
            what = {name: event[name] for name in ("step", "phase", "reason")}
            for site in places:
                if site in event["sites"] or site in event["scores"]:
                    now = state[site] | {"shared_with": ",".join(state[site]["shared_with"])}
                    rows.append(
                        {**key, **what, "site": site, **places[site], **now, "score": event["scores"].get(site)}
                    )
    return pd.DataFrame(rows, columns=TRACE)


def history(comparison: StoredStudy) -> pd.DataFrame:
    """One row a finished arm and logged step: the training loss, averaged since the row before, and the rate.

    Args:
        comparison: a stored study.
    """
    rows = []
    for key, folder in comparison.arms():
        result = folder.result()
        if result is None:
            continue
        for log in folder.history():
            if "loss" in log:
                phase = next(p["name"] for p in result["phases"] if log["step"] <= p["stop"])
                rows.append({**key, "phase": phase, **{n: log.get(n) for n in ("step", "loss", "learning_rate")}})
    return pd.DataFrame(rows, columns=HISTORY)


def costs(comparison: StoredStudy) -> pd.DataFrame:
    """One row a finished arm and phase, and one for its evaluation.

    `start` and `stop` are the phase's steps, stop excluded, missing for the evaluation; `share` is its part of the
    arm's seconds. Seconds compare only between arms that ran on the same idle machine.

    Args:
        comparison: a stored study.
    """
    rows = []
    for key, folder in comparison.arms():
        result = folder.result()
        if result is None:
            continue
        ledger = result["ledger"]
        # An arm that had nothing to train spent no time in its phases.
        seconds = ledger["phase_seconds"]
        spent = [
            {"phase": p["name"], "start": p["start"], "stop": p["stop"], "seconds": seconds.get(p["name"], 0.0)}
            for p in result["phases"]
        ]
        spent.append({"phase": "evaluation", "start": None, "stop": None, "seconds": ledger["evaluation_seconds"]})
        total = sum(row["seconds"] for row in spent)
        rows += [{**key, **row, "share": row["seconds"] / total} for row in spent]
    return pd.DataFrame(rows, columns=COSTS)
