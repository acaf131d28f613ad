"""`ArmInputs`: model and data that all arms of a task share."""

from collections.abc import Mapping
from dataclasses import dataclass

from peftprune.models.load import LoadedModel
from peftprune.tasks import Task
from peftprune.training.ledger import BaseCost
from peftprune.training.objectives import Objective, Splits
from peftprune.training.tokenise import Example


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
