"""Every method of a stored study against a baseline, on the same seeds and the same examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from peftprune.errors import UsageError
from peftprune.metrics import METRICS
from peftprune.stats import detectable_from, holm, paired_bootstrap, verdict

if TYPE_CHECKING:
    from peftprune.comparison import Comparison

COLUMNS = ["method", "baseline", "metric", "seeds", "difference", "low", "high", "p", "p_holm", "detectable", "verdict"]
_RESAMPLES = 10_000
_SLOW_RESAMPLES = 500
"""For metrics that are recomputed for each replicate."""


def against(comparison: Comparison, baseline: str) -> pd.DataFrame:
    """Paired differences to the baseline, one row a method and metric (see `COLUMNS`).

    The interval and p come from `stats.paired_bootstrap`, which resamples examples and seeds together; p is corrected
    over methods by Holm's procedure for each metric; `detectable` is the smallest true difference that a study like
    this one finds with a power of 0.8, NaN where the two agree on every example. With one seed, interval and detectable
    difference speak of the two trained models, not of the methods.

    Args:
        comparison: a stored study.
        baseline: label of the arm that the others are held against.

    Raises:
        UsageError: when the study has no such label.
    """
    labels = list(dict.fromkeys(a["label"] for a in comparison.request["arms"]))
    if baseline not in labels:
        raise UsageError.of("baseline", baseline, "is not in the study", f"Labels: {', '.join(labels)}")
    predictions = {label: _predictions(comparison, label) for label in labels}
    rows: list[dict[str, Any]] = []
    for metric in comparison.metrics:
        found = [
            _row(label, baseline, metric, predictions[label], predictions[baseline])
            for label in labels
            if label != baseline and predictions[label].keys() & predictions[baseline].keys()
        ]
        if not found:
            continue
        corrected = holm([row["p"] for row in found])
        rows += [
            row
            | {
                "p_holm": float(p),
                "verdict": verdict(
                    row["difference"],
                    float(p),
                    row["seeds"],
                    smallest_p=2 / (1 + _resamples(row["measure"])),
                    comparisons=len(found),
                    higher_is_better=METRICS[row["measure"]].higher_is_better,
                ),
            }
            for row, p in zip(found, corrected, strict=True)
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _predictions(comparison: Comparison, label: str) -> dict[int, pd.DataFrame]:
    """Seed to the predictions of the label's finished arms."""
    return {
        a["seed"]: pd.read_parquet(folder.predictions, columns=["split", "label", "prediction"])
        for a in comparison.request["arms"]
        if a["label"] == label
        and (folder := comparison.arm(label, a["seed"])).result() is not None
        and folder.predictions.is_file()
    }


def _row(
    label: str, baseline: str, metric: str, ours: dict[int, pd.DataFrame], theirs: dict[int, pd.DataFrame]
) -> dict[str, Any]:
    seeds = sorted(ours.keys() & theirs.keys())
    splits = list(ours[seeds[0]]["split"].unique())
    split = next((s for s in splits[1:] if metric.endswith(f"_{s}")), splits[0])
    measure = metric.removesuffix(f"_{split}")

    def chosen(frames: dict[int, pd.DataFrame], column: str) -> list[list[float]]:
        return [frames[s].loc[frames[s]["split"] == split, column].tolist() for s in seeds]

    found = paired_bootstrap(
        chosen(ours, "prediction"),
        chosen(theirs, "prediction"),
        references=chosen(ours, "label")[0],
        metric=measure,
        resamples=_resamples(measure),
    )
    return {
        "method": label,
        "baseline": baseline,
        "metric": metric,
        "measure": measure,
        "seeds": len(seeds),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        # Two methods that agree on every example show no noise to reckon with.
        "detectable": detectable_from(found) if found.example_std > 0 else math.nan,
    }


def _resamples(measure: str) -> int:
    return _SLOW_RESAMPLES if measure == "spearman" else _RESAMPLES
