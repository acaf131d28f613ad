"""`Objective`: how a task of each kind is tokenised, trained and scored; and `ArmInputs`, with which arms train."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, Trainer

from peftprune.errors import DivergedError
from peftprune.models.head import rescale_output
from peftprune.models.load import LoadedModel
from peftprune.stats.metrics import METRICS, compute_metrics, score_column
from peftprune.strategy.lazy import Dataset
from peftprune.tasks import Task
from peftprune.training import text_generation
from peftprune.training.evaluation import Scored, metric_name, predict
from peftprune.training.ledger import BaseCost
from peftprune.training.settings import TrainingSettings
from peftprune.training.tokenise import Example, cached, check_lengths, longest_input, tokenise

Splits = Mapping[str, Sequence[Example]]
"""Evaluation split to its tokenised examples."""


class Objective:
    """A task with the model that learns it: tokens, loss, batches and scores. This base is that of a task head.

    Attributes:
        collator: pads examples to a batch.
        loss: (outputs, labels, number of examples or target tokens in the step or None) to the loss.
        predictions: (n, outputs) outputs to (n,) predictions.
    """

    collator: Callable[[Sequence[Example]], Any]
    loss: Callable[..., Tensor]
    predictions: Callable[[Tensor], Tensor]

    def __init__(self, task: Task, model: LoadedModel) -> None:
        self.task = task
        self.model = model
        self.collator = DataCollatorWithPadding(model.tokenizer)

    def check(self, settings: TrainingSettings) -> None:
        """Raises UsageError where the model cannot read or write texts of the settings' lengths."""
        check_lengths(self.model, settings.max_length)

    def longest(self, settings: TrainingSettings) -> int | None:
        """Returns the largest `max_length` that the model reads; None where it has no limit."""
        return longest_input(self.model)

    def tokenise(self, rows: Dataset, settings: TrainingSettings, part: str) -> list[Example]:
        """Returns the tokenised rows, cached on disk; `part` names them within the task."""
        return tokenise(rows, self.model, settings.max_length, f"{self.task.fingerprint}/{part}")

    def fitted(self, rows: Sequence[Example]) -> Objective:
        """Returns the objective of a run on these tokenised training examples."""
        return self

    def finish(self, model: nn.Module, head: Sequence[str]) -> dict[str, Any]:
        """Makes a trained model's outputs those of the task, in place; `head` names its head's modules.

        Returns facts for the arm's record.
        """
        return {}

    def strata(self, rows: Sequence[Example]) -> list[int] | None:
        """Returns the class of each example; None where there are no classes."""
        return None

    def base_cost(self, rows: Sequence[Example]) -> BaseCost:
        """Returns the frozen model's cost per token of these training examples."""
        return BaseCost.of(self.model.model)

    def identity(self, settings: TrainingSettings) -> dict[str, Any]:
        """Returns the settings that task and model complete, as the arm's hash holds them."""
        return {}

    def decoding(self, settings: TrainingSettings) -> str | None:
        """Returns how texts are generated, in words; None where none are."""
        return None

    def evaluate(self, trainer: Trainer, splits: Splits, settings: TrainingSettings) -> Scored:
        """Predicts and scores every evaluation split. Raises DivergedError when the model's outputs are not finite."""
        metrics: dict[str, float] = {}
        frames = []
        for i, (split, rows) in enumerate(splits.items()):
            outputs = predict(trainer, rows)
            if not bool(torch.isfinite(outputs).all()):
                cure = "Lower learning_rate, or use dtype float32"
                raise DivergedError(f"evaluation: the model's outputs are not finite. {cure}")
            labels, predicted = list(self.task.evaluation[split]["label"]), self.predictions(outputs).tolist()
            scores = compute_metrics(self.task.metrics, predicted, labels)
            metrics |= {metric_name(name, split, i): score for name, score in scores.items()}
            columns = {"label": labels, "prediction": predicted, "logits": outputs.tolist()}
            frames.append(pd.DataFrame({"split": split, "index": range(len(labels)), **columns}))
        return Scored(metrics, pd.concat(frames))


def classification_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Returns the cross-entropy of (batch, classes) logits, summed and divided by the optimizer step's examples."""
    total = nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class Classification(Objective):
    """Cross-entropy over the classes; the largest logit is the prediction."""

    loss = staticmethod(classification_loss)
    predictions = staticmethod(lambda outputs: outputs.argmax(-1))

    def strata(self, rows: Sequence[Example]) -> list[int] | None:
        return [row["labels"] for row in rows]


def regression_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Returns the squared error of (batch, 1) logits, summed and divided by the optimizer step's examples."""
    total = nn.functional.mse_loss(outputs.logits.float().squeeze(-1), labels.float(), reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class Regression(Objective):
    """Squared error of the one output, on labels less `mean` and divided by `deviation`: those of the training sample.

    The head starts near 0, and a learning rate moves it by little in each step, so raw labels far from 0 would cost
    most of a run. After training the mapping back is folded into the head, so that a saved adapter predicts labels;
    where the head has no bias to hold the mean, `predictions` maps its outputs.
    """

    def __init__(self, task: Task, model: LoadedModel) -> None:
        super().__init__(task, model)
        self.mean, self.deviation = 0.0, 1.0
        self.in_head = False

    def identity(self, settings: TrainingSettings) -> dict[str, Any]:
        return {"targets": "standardised"}

    def fitted(self, rows: Sequence[Example]) -> Regression:
        found, labels = copy.copy(self), [float(row["labels"]) for row in rows]
        # Equal labels have no spread to divide by.
        found.mean, found.deviation = statistics.fmean(labels), statistics.pstdev(labels) or 1.0
        found.in_head = False
        return found

    def finish(self, model: nn.Module, head: Sequence[str]) -> dict[str, Any]:
        self.in_head = rescale_output(model, head, self.deviation, self.mean)
        return {"targets": {"mean": self.mean, "deviation": self.deviation, "in_head": self.in_head}}

    def loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        return regression_loss(outputs, (labels.float() - self.mean) / self.deviation, num_items_in_batch)

    def predictions(self, outputs: Tensor) -> Tensor:
        found = outputs.squeeze(-1)
        return found if self.in_head else found * self.deviation + self.mean


class Generation(Objective):
    """Cross-entropy of the target's tokens; generated texts are scored against the references."""

    def __init__(self, task: Task, model: LoadedModel) -> None:
        super().__init__(task, model)
        self.collator = text_generation.GenerationCollator(model)
        self.loss = text_generation.loss_for(model.model)

    def check(self, settings: TrainingSettings) -> None:
        text_generation.check_form(self._resolved(settings), self.model)

    def longest(self, settings: TrainingSettings) -> int | None:
        return text_generation.longest_source(self._resolved(settings), self.model)

    def tokenise(self, rows: Dataset, settings: TrainingSettings, part: str) -> list[Example]:
        settings = self._resolved(settings)
        before = f"{self.task.fingerprint}/{part}/"
        after = f"/{settings.prompt!r}/{settings.max_length}/{settings.max_target_length}"
        encode = text_generation.encode
        return cached(self.model, before, after, lambda: pa.Table.from_pylist(encode(rows, self.model, settings)))

    def base_cost(self, rows: Sequence[Example]) -> BaseCost:
        if not text_generation.is_encoder_decoder(self.model.model):
            return super().base_cost(rows)
        # Encoder and decoder read different texts: each costs its share of the tokens.
        source = sum(len(row["input_ids"]) for row in rows) / sum(row["length"] for row in rows)
        return BaseCost.of(self.model.model, {"encoder": source, "cross": source, "decoder": 1 - source})

    def identity(self, settings: TrainingSettings) -> dict[str, Any]:
        return {"prompt": self._resolved(settings).prompt or ""}

    def decoding(self, settings: TrainingSettings) -> str | None:
        return text_generation.decoding_in_words(self._resolved(settings))

    def evaluate(self, trainer: Trainer, splits: Splits, settings: TrainingSettings) -> Scored:
        metrics: dict[str, float] = {}
        losses, frames = {}, []
        settings = self._resolved(settings)
        for i, (split, rows) in enumerate(splits.items()):
            # First, since it is quick and fails where the outputs are not finite.
            losses[split] = text_generation.evaluation_loss(trainer, self.model, rows, settings.batch_size)
            texts = text_generation.generate(trainer, self.model, rows, settings)
            references = [list(r) for r in self.task.evaluation[split]["label"]]
            frame = {"split": split, "index": range(len(texts)), "prediction": texts, "references": references}
            for name in self.task.metrics:
                found = METRICS[name].statistics(texts, references)
                metrics[metric_name(name, split, i)] = METRICS[name].value(found)
                frame[score_column(name)] = found.tolist()
            frames.append(pd.DataFrame(frame))
        facts = {"decoding": text_generation.decoding_in_words(settings), "loss": losses}
        return Scored(metrics, pd.concat(frames), facts)

    def _resolved(self, settings: TrainingSettings) -> TrainingSettings:
        return text_generation.resolved(settings, self.task, self.model)


@dataclass(frozen=True)
class ArmInputs:
    """What all arms of a task have in common; `head` names the modules of the model's head.

    `held_out` is what scores the checkpoints to select from, and its tokenised examples by split; None where the last
    state is reported.
    """

    model: LoadedModel
    head: tuple[str, ...]
    base_cost: BaseCost
    task: Task
    objective: Objective
    train: list[Example]
    evaluation: Mapping[str, list[Example]]
    dtype: str
    held_out: tuple[Objective, Splits] | None = None


_OF_KIND: dict[str, type[Objective]] = {
    "classification": Classification,
    "regression": Regression,
    "generation": Generation,
}


def objective_of(task: Task, model: LoadedModel) -> Objective:
    return _OF_KIND[task.kind](task, model)
