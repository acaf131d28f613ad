"""Evaluate a trained arm: predictions and metrics per split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from peftprune.errors import RunError
from peftprune.stats.metrics import METRICS, compute_metrics, score_column
from peftprune.tasks import Task
from peftprune.training.text_generation import Decoding, evaluation_loss, generate
from peftprune.training.tokenise import Example

if TYPE_CHECKING:
    from transformers import Trainer

    from peftprune.models.load import LoadedModel


@dataclass(frozen=True)
class Scored:
    """The evaluation of one arm.

    Attributes:
        metrics: those of the second and later evaluation splits carry the split's name.
        predictions: one row per example: split, index, prediction, label and logits. Generated text has references
            instead of the latter two, and per metric the example's contribution (`score_...`).
        facts: how texts were generated, and the mean loss of a target token by split; empty for other tasks.
    """

    metrics: dict[str, float]
    predictions: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


def score_outputs(
    trainer: Trainer, task: Task, splits: Mapping[str, Sequence[Example]], predictions: Callable[[Tensor], Tensor]
) -> Scored:
    """Predicts and scores every split of a task with a task head.

    Args:
        trainer: holds the trained model.
        task: its labels and metrics.
        splits: tokenised examples by split.
        predictions: (n, outputs) outputs to (n,) predictions.

    Raises:
        RunError: when an output is not finite.
    """
    metrics: dict[str, float] = {}
    frames = []
    for i, (split, rows) in enumerate(splits.items()):
        outputs = predict(trainer, rows)
        if not bool(torch.isfinite(outputs).all()):
            raise RunError("evaluation: the model's outputs are not finite. Lower learning_rate, or use dtype float32")
        labels, predicted = list(task.evaluation[split]["label"]), predictions(outputs).tolist()
        scores = compute_metrics(task.metrics, predicted, labels)
        metrics |= {_named(name, split, i): score for name, score in scores.items()}
        columns = {"label": labels, "prediction": predicted, "logits": outputs.tolist()}
        frames.append(pd.DataFrame({"split": split, "index": range(len(outputs)), **columns}))
    return Scored(metrics, pd.concat(frames))


def score_texts(
    trainer: Trainer,
    task: Task,
    model: LoadedModel,
    splits: Mapping[str, Sequence[Example]],
    decoding: Decoding,
    batch_size: int,
) -> Scored:
    """Generates and scores the texts of every split.

    Raises:
        RunError: when the model's outputs are not finite.
    """
    metrics: dict[str, float] = {}
    losses, frames = {}, []
    for i, (split, rows) in enumerate(splits.items()):
        # First, since it is quick and fails where the outputs are not finite.
        losses[split] = evaluation_loss(trainer, model, rows, batch_size)
        texts = generate(trainer, model, rows, decoding, batch_size)
        references = [list(r) for r in task.evaluation[split]["label"]]
        frame = {"split": split, "index": range(len(texts)), "prediction": texts, "references": references}
        for name in task.metrics:
            found = METRICS[name].statistics(texts, references)
            metrics[_named(name, split, i)] = METRICS[name].value(found)
            frame[score_column(name)] = found.tolist()
        frames.append(pd.DataFrame(frame))
    return Scored(metrics, pd.concat(frames), {"decoding": str(decoding), "loss": losses})


def _named(metric: str, split: str, i: int) -> str:
    return metric if i == 0 else f"{metric}_{split}"


def predict(trainer: Trainer, dataset: Sequence[dict[str, Any]]) -> Tensor:
    """Returns the logits of each example in order, (n, outputs); batches hold examples of similar length."""
    order = sorted(range(len(dataset)), key=lambda i: -len(dataset[i]["input_ids"]))
    output = trainer.predict([dataset[i] for i in order])
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    if logits is None:
        raise RunError("evaluation: the model returned no logits. Use a model with a classification head")
    restored = torch.empty_like(torch.as_tensor(logits))
    restored[torch.as_tensor(order)] = torch.as_tensor(logits)
    return restored
