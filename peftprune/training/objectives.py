"""`Objective`: how a task of each kind is tokenised, trained and scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch import Tensor
from transformers import DataCollatorWithPadding

from peftprune.training.evaluation import Scored, score_outputs, score_texts
from peftprune.training.ledger import BaseCost
from peftprune.training.losses import classification_loss, regression_loss
from peftprune.training.text_generation import (
    Decoding,
    GenerationCollator,
    TextForm,
    check_form,
    encode,
    is_encoder_decoder,
    loss_for,
)
from peftprune.training.tokenise import Example, cached, check_lengths, tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from peftprune.models.load import LoadedModel
    from peftprune.tasks import Task
    from peftprune.training.settings import TrainingSettings

Loss = Callable[..., Tensor]
"""(outputs, labels, number of examples or target tokens in the step or None) to the loss."""
Splits = Mapping[str, Sequence[Example]]
"""Evaluation split to its tokenised examples."""


class Objective(ABC):
    """A task with the model that learns it: tokens, loss, batches and scores.

    Attributes:
        collator: pads examples to a batch.
        loss: the training loss.
    """

    collator: Callable[[Sequence[Example]], Any]
    loss: Loss

    def __init__(self, task: Task, model: LoadedModel) -> None:
        self.task = task
        self.model = model

    @abstractmethod
    def check(self, settings: TrainingSettings) -> None:
        """Raises UsageError where the model cannot read or write texts of the settings' lengths."""

    @abstractmethod
    def tokenise(self, rows: Dataset, settings: TrainingSettings, part: str) -> list[Example]:
        """Returns the tokenised rows, cached on disk; `part` names them within the task."""

    @abstractmethod
    def evaluate(self, trainer: Trainer, rows: Splits, settings: TrainingSettings) -> Scored:
        """Predicts and scores every evaluation split. Raises RunError when the model's outputs are not finite."""

    def strata(self, rows: Sequence[Example]) -> list[int] | None:
        """Returns the class of each example; None where there are no classes."""
        return None

    def base_cost(self, rows: Sequence[Example]) -> BaseCost:
        """Returns the frozen model's cost per token of these training examples."""
        return BaseCost.of(self.model.model)

    def decoding(self, settings: TrainingSettings) -> str | None:
        """Returns how texts are generated, in words; None where none are."""
        return None

    def identity(self, settings: TrainingSettings) -> dict[str, Any]:
        """Returns the settings that task and model complete, as the arm's hash holds them."""
        return {}


class _Labels(Objective):
    """The task head's outputs are compared with one label an example."""

    def __init__(self, task: Task, model: LoadedModel) -> None:
        super().__init__(task, model)
        self.collator = DataCollatorWithPadding(model.tokenizer)

    def check(self, settings: TrainingSettings) -> None:
        check_lengths(self.model, settings.max_length)

    def tokenise(self, rows: Dataset, settings: TrainingSettings, part: str) -> list[Example]:
        return tokenise(rows, self.model, settings.max_length, f"{self.task.fingerprint}/{part}")

    def evaluate(self, trainer: Trainer, rows: Splits, settings: TrainingSettings) -> Scored:
        return score_outputs(trainer, self.task, rows, self.predictions)

    @staticmethod
    @abstractmethod
    def predictions(outputs: Tensor) -> Tensor:
        """Returns (n,) predictions from (n, outputs)."""


class Classification(_Labels):
    """Cross-entropy over the classes; the largest logit is the prediction."""

    loss = staticmethod(classification_loss)

    def strata(self, rows: Sequence[Example]) -> list[int] | None:
        return [row["labels"] for row in rows]

    @staticmethod
    def predictions(outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)


class Regression(_Labels):
    """Squared error of the one output, which is the prediction."""

    loss = staticmethod(regression_loss)

    @staticmethod
    def predictions(outputs: Tensor) -> Tensor:
        return outputs.squeeze(-1)


class Generation(Objective):
    """Cross-entropy of the target's tokens; generated texts are scored against the references."""

    def __init__(self, task: Task, model: LoadedModel) -> None:
        super().__init__(task, model)
        self.collator = GenerationCollator(model)
        self.loss = loss_for(model.model)

    def check(self, settings: TrainingSettings) -> None:
        check_form(self._form(settings), Decoding.of(settings), self.model)

    def tokenise(self, rows: Dataset, settings: TrainingSettings, part: str) -> list[Example]:
        form = self._form(settings)
        before = f"{self.task.fingerprint}/{part}/"
        return cached(self.model, before, f"/{form}", lambda: pa.Table.from_pylist(encode(rows, self.model, form)))

    def evaluate(self, trainer: Trainer, rows: Splits, settings: TrainingSettings) -> Scored:
        return score_texts(trainer, self.task, self.model, rows, Decoding.of(settings), settings.batch_size)

    def base_cost(self, rows: Sequence[Example]) -> BaseCost:
        if not is_encoder_decoder(self.model.model):
            return super().base_cost(rows)
        # Encoder and decoder read different texts: each costs its share of the tokens.
        source = sum(len(row["input_ids"]) for row in rows) / sum(row["length"] for row in rows)
        return BaseCost.of(self.model.model, {"encoder": source, "cross": source, "decoder": 1 - source})

    def decoding(self, settings: TrainingSettings) -> str | None:
        return str(Decoding.of(settings))

    def identity(self, settings: TrainingSettings) -> dict[str, Any]:
        return {"prompt": self._form(settings).prompt}

    def _form(self, settings: TrainingSettings) -> TextForm:
        return TextForm.of(settings, self.task, self.model)


_OF_KIND: dict[str, type[Objective]] = {
    "classification": Classification,
    "regression": Regression,
    "generation": Generation,
}


def objective_of(task: Task, model: LoadedModel) -> Objective:
    """Returns the objective of the task's kind."""
    return _OF_KIND[task.kind](task, model)
