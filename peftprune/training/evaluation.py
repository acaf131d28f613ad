"""What a trained arm is worth: predictions of every evaluation split, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from transformers import Trainer

from peftprune.errors import RunError
from peftprune.stats.metrics import METRICS, compute_metrics, score_column
from peftprune.tasks import Task
from peftprune.training.text_generation import Decoding, evaluation_loss, generate

if TYPE_CHECKING:
    from transformers import Trainer

    from peftprune.training.inputs import ArmInputs
    from peftprune.training.settings import TrainingSettings


@dataclass(frozen=True)
class Scored:
    """What an arm got.

    Attributes:
        metrics: those of the second and later evaluation splits carry the split's name.
        predictions: one row an example: split, index, prediction, and label and logits; of generated text the
            references instead, and by metric what the example adds to it (`score_...`).
        facts: how texts were generated, and the mean loss of a target token by split; empty for other tasks.
    """

    metrics: dict[str, float]
    predictions: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


def evaluate(trainer: Trainer, inputs: ArmInputs, settings: TrainingSettings) -> Scored:
    """Predict every evaluation split with the trained model, and score it.

    Raises:
        RunError: when the model's outputs are not finite.
    """
    if inputs.task.kind == "generation":
        return _generated(trainer, inputs, settings)
    logits = {split: predict(trainer, rows) for split, rows in inputs.evaluation.items()}
    return Scored(_metrics(inputs.task, logits), _frame(inputs.task, logits))


def _metrics(task: Task, logits: Mapping[str, Tensor]) -> dict[str, float]:
    found: dict[str, float] = {}
    for i, (split, values) in enumerate(logits.items()):
        if not bool(torch.isfinite(values).all()):
            raise RunError("evaluation: the model's outputs are not finite. Lower learning_rate, or use dtype float32")
        references = list(task.evaluation[split]["label"])
        scores = compute_metrics(task.metrics, _predictions(task, values).tolist(), references)
        found |= {_named(name, split, i): score for name, score in scores.items()}
    return found


def _named(metric: str, split: str, i: int) -> str:
    return metric if i == 0 else f"{metric}_{split}"


def _predictions(task: Task, logits: Tensor) -> Tensor:
    return logits.argmax(-1) if task.kind == "classification" else logits.squeeze(-1)


def _frame(task: Task, logits: Mapping[str, Tensor]) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "split": split,
                "index": range(len(values)),
                "label": list(task.evaluation[split]["label"]),
                "prediction": _predictions(task, values).tolist(),
                "logits": values.tolist(),
            }
        )
        for split, values in logits.items()
    ]
    return pd.concat(frames)


def _generated(trainer: Trainer, inputs: ArmInputs, settings: TrainingSettings) -> Scored:
    task, decoding, size = inputs.task, Decoding.of(settings), settings.batch_size
    metrics: dict[str, float] = {}
    losses, frames = {}, []
    for i, (split, rows) in enumerate(inputs.evaluation.items()):
        # First, since it is quick and fails where the outputs are not finite.
        losses[split] = evaluation_loss(trainer, inputs.model, rows, size)
        texts = generate(trainer, inputs.model, rows, decoding, size)
        references = [list(r) for r in task.evaluation[split]["label"]]
        frame = {"split": split, "index": range(len(texts)), "prediction": texts, "references": references}
        for name in task.metrics:
            found = METRICS[name].statistics(texts, references)
            metrics[_named(name, split, i)] = METRICS[name].value(found)
            frame[score_column(name)] = found.tolist()
        frames.append(pd.DataFrame(frame))
    return Scored(metrics, pd.concat(frames), {"decoding": str(decoding), "loss": losses})


def predict(trainer: Trainer, dataset: Sequence[dict[str, Any]]) -> Tensor:
    """Logits for each example in order, (n, classes); batches hold examples of similar length."""
    order = sorted(range(len(dataset)), key=lambda i: -len(dataset[i]["input_ids"]))
    output = trainer.predict([dataset[i] for i in order])
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    if logits is None:
        raise RunError("evaluation: the model returned no logits. Use a model with a classification head")
    restored = torch.empty_like(torch.as_tensor(logits))
    restored[torch.as_tensor(order)] = torch.as_tensor(logits)
    return restored
