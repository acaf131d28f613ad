"""Stored predictions, by method and seed, and what a metric's name says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from peftprune.stats.metric_sums import SUM_METRICS
from peftprune.stats.metrics import METRICS, score_column

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy

Predictions = dict[str, dict[int, pd.DataFrame]]


class Measure(NamedTuple):
    """A reported metric: `name` (see `peftprune.stats.metrics`), evaluation `split`, direction and range."""

    name: str
    split: str
    higher_is_better: bool
    limits: tuple[float, float]


def predictions(cell: StoredStudy) -> Predictions:
    """Method to seed to the stored predictions of each finished arm of one task and budget.

    Columns: split, label and prediction; of generated text split and, by metric, what each example adds to it.
    """
    generated = cell.request["tasks"][0]["kind"] == "generation"
    columns = ["split", *map(score_column, METRICS)] if generated else ["split", "label", "prediction"]
    found: Predictions = {method: {} for method in cell.methods}
    for key, folder in cell.arms():
        if folder.result() is not None:
            frame = folder.read_predictions()
            found[key["method"]][key["seed"]] = frame[[c for c in columns if c in frame.columns]]
    return found


class Given(NamedTuple):
    """What the statistics take of one model's stored predictions."""

    values: list[Any]
    references: list[Any] | None
    metric: str | None


def given(stored: pd.DataFrame, what: Measure) -> Given:
    """The predictions and labels of the measure's split; of generated text what each example adds to the metric."""
    part = stored[stored["split"] == what.split]
    if METRICS[what.name].kind == "generation":
        values = part[score_column(what.name)].tolist()
        return Given(values, None, what.name if what.name in SUM_METRICS else None)
    return Given(part["prediction"].tolist(), part["label"].tolist(), what.name)


def measure(cell: StoredStudy, metric: str) -> Measure:
    """What a metric of one task measures: those of the second and later evaluation splits carry the split's name."""
    splits = list(cell.request["tasks"][0]["evaluation_examples"])
    split = next((s for s in splits[1:] if metric.endswith(f"_{s}")), splits[0])
    name = metric.removesuffix(f"_{split}")
    info = METRICS[name]
    return Measure(name, split, info.higher_is_better, (info.low, info.high))
