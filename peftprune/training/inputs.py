"""`ArmInputs`: model and data that all arms of a task share."""

from collections.abc import Mapping
from dataclasses import dataclass

from peftprune.models.load import LoadedModel
from peftprune.tasks import Task
from peftprune.training.ledger import BaseCost
from peftprune.training.objectives import Objective
from peftprune.training.tokenise import Example


@dataclass(frozen=True)
class ArmInputs:
    """What all arms of a task have in common.

    Attributes:
        model: the pretrained model, shared by all arms.
        head: names of its head's modules.
        base_cost: for the ledger's FLOPs.
        task: the task.
        objective: how the model learns the task.
        train: tokenised training examples.
        evaluation: tokenised examples by split.
        dtype: "float32" or "bfloat16".
    """

    model: LoadedModel
    head: tuple[str, ...]
    base_cost: BaseCost
    task: Task
    objective: Objective
    train: list[Example]
    evaluation: Mapping[str, list[Example]]
    dtype: str
