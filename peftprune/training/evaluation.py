"""Evaluate a trained arm: predictions and metrics per split."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import Trainer

from peftprune.errors import RunError


@dataclass(frozen=True)
class Scored:
    """The evaluation of one arm; see `metric_name` for the names of metrics.

    `predictions` has one row per example: split, index, prediction, label and logits. Generated text has references
    instead of the latter two, and per metric the example's contribution (`score_...`). Its `facts` are how texts were
    generated, and the mean loss of a target token by split.
    """

    metrics: dict[str, float]
    predictions: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


def metric_name(metric: str, split: str, i: int) -> str:
    """Returns the name of a metric of the i-th evaluation split; from the second on it carries the split's name."""
    return metric if i == 0 else f"{metric}_{split}"


def predict(trainer: Trainer, dataset: Sequence[dict[str, Any]]) -> Tensor:
    """Returns the logits of each example in order, (n, outputs); batches hold examples of similar length."""
    order = sorted(range(len(dataset)), key=lambda i: -len(dataset[i]["input_ids"]))
    output = trainer.predict([dataset[i] for i in order])
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    if logits is None:
        raise RunError("evaluation: the model returned no logits. Use a model with a classification head")
    return torch.as_tensor(logits)[torch.as_tensor(order).argsort()]
