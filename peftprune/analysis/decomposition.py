"""Splits a method's gain over plain LoRA into its ranks, their place, and how it trained them."""

from collections.abc import Mapping

import pandas as pd

from peftprune.analysis.differences import against
from peftprune.errors import UsageError
from peftprune.stats import adjust
from peftprune.study.stored_study import StoredStudy

PARTS = {
    "ranks": ("transplant", "baseline"),
    "place": ("transplant", "shuffled"),
    "dynamics": ("method", "transplant"),
}
"""Part to the two sides whose difference it is."""
COLUMNS = ["task", "budget", "metric", "method", "part", "side", "other", "seeds", "difference"]
_INTERVAL = ["low", "high", "p", "p_holm"]


def decompose(study: StoredStudy, runs: pd.DataFrame, method: str, baseline: str) -> pd.DataFrame:
    """Returns the parts of a method's gain, one row per task, budget, metric and part (`PARTS`).

    "ranks" is `transplant(of=method)` minus the baseline, "place" the same minus `shuffled(of=method)`, and "dynamics"
    the method minus the transplant: ranks and dynamics add up to the gain. Differences, 95 % intervals of each row and
    p are those of `against`; `p_holm` is corrected over the parts of a task, a budget and a metric. A part whose
    control the study does not have is left out.

    Raises UsageError if the study has no transplant of the method.
    """
    sides = {"method": method, "baseline": baseline, **controls(study, method)}
    if "transplant" not in sides:
        problem = "has no transplant in the study"
        cure = f"Add transplant(of='{method}') to methods, and shuffled(of=...)"
        raise UsageError.of("method", method, problem, cure)
    frames = []
    for part, (side, other) in PARTS.items():
        if other not in sides or sides[side] == sides[other]:
            continue
        pair = study.between(sides[side], sides[other])
        found = against(pair, runs, sides[other])
        frames.append(found.assign(part=part, side=sides[side], other=sides[other], method=method))
    rows = pd.concat(frames, ignore_index=True)
    for _, group in rows.groupby(["task", "budget", "metric"]):
        rows.loc[group.index, "p_holm"] = adjust(list(group["p"])).p
    return rows[[*COLUMNS, *_INTERVAL]]


def decompositions(study: StoredStudy, runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Returns the parts of every method's gain that has a transplant, as `decompose` does for one."""
    named = [m for m in study.methods if m != baseline and "transplant" in controls(study, m)]
    made = [decompose(study, runs, method, baseline) for method in named]
    return pd.concat(made, ignore_index=True) if made else pd.DataFrame(columns=[*COLUMNS, *_INTERVAL])


def controls(study: StoredStudy, method: str) -> Mapping[str, str]:
    """Returns the labels of the transplant and the shuffled control of a method, as far as the study has them."""
    found: dict[str, str] = {}
    for key, folder, result in study.finished():
        if result["method"] in ("transplant", "shuffled"):
            needed = folder.config().get("depends_on", {})
            if needed.get("label") == method:
                found.setdefault(result["method"], key["method"])
    return found
