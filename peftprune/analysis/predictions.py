"""Stored predictions, and what a metric's name says of them."""

from typing import Any, NamedTuple

import pandas as pd

from peftprune.stats.metrics import METRICS, score_column
from peftprune.study.stored_study import StoredStudy
from peftprune.tasks.kinds import KINDS

Predictions = dict[str, dict[int, pd.DataFrame]]


class Measure(NamedTuple):
    """A reported metric: `name` (see `peftprune.stats.metrics`), evaluation `split`, direction and range."""

    name: str
    split: str
    higher_is_better: bool
    limits: tuple[float, float]


def measure(study: StoredStudy, task: str, metric: str) -> Measure:
    """Returns what a task's metric measures; metrics of the second and later evaluation splits end in the split's name.

    For example, `accuracy_mismatched` is the accuracy on the split `mismatched`.
    """
    splits = next(list(t["evaluation_examples"]) for t in study.request["tasks"] if t["name"] == task)
    split = next((s for s in splits[1:] if metric.endswith(f"_{s}")), splits[0])
    name = metric.removesuffix(f"_{split}")
    info = METRICS[name]
    return Measure(name, split, info.higher_is_better, (info.low, info.high))


def predictions(cell: StoredStudy) -> Predictions:
    """Returns, by method and seed, the stored predictions of each finished arm of one task and budget.

    Columns: split, label and prediction; for generated text, split and each example's contribution to each metric.
    """
    generated = KINDS[cell.request["tasks"][0]["kind"]].writes_text
    columns = ["split", *map(score_column, METRICS)] if generated else ["split", "label", "prediction"]
    found: Predictions = {method: {} for method in cell.methods}
    for key, folder, _ in cell.finished():
        frame = folder.read_predictions()
        found[key["method"]][key["seed"]] = frame[[c for c in columns if c in frame.columns]]
    return found


def sample(stored: pd.DataFrame, what: Measure) -> tuple[list[Any], list[Any] | None, str]:
    """Returns predictions, labels and metric as `stats` expects them, on the measure's split.

    Those of generated text are each example's contribution, without labels.
    """
    part = stored[stored["split"] == what.split]
    if KINDS[METRICS[what.name].kind].writes_text:
        return part[score_column(what.name)].tolist(), None, what.name
    return part["prediction"].tolist(), part["label"].tolist(), what.name
