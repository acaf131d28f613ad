"""Selects the state of a run to evaluate: the best on held-out data of those that were evaluated during training."""

from dataclasses import dataclass, field
from typing import Any

from peftprune.stats.metrics import METRICS
from peftprune.training.objectives import Objective, Splits
from peftprune.training.settings import TrainingSettings


@dataclass
class Selection:
    """Scores a run at its checkpoints: `objective` scores the held-out examples, its one evaluation split.

    With `last_only` the method decides inside the model, unseen, so that only the last state is known to be within the
    budget. `rows` hold "step", "score" and the number of "decisions" so far, one per checkpoint.
    """

    objective: Objective
    splits: Splits
    settings: TrainingSettings
    last_only: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)

    def score(self, trainer: Any) -> None:
        """Scores the state of now."""
        step = trainer.state.global_step
        metrics = self.objective.evaluate(trainer, self.splits, self.settings).metrics
        decisions = len(trainer.pruning.trace.rows)
        self.rows.append({"step": step, "score": metrics[self.objective.task.metrics[0]], "decisions": decisions})
        trainer.pruning.on_evaluate(trainer.args, trainer.state, trainer.control)

    @property
    def best(self) -> int:
        """The step of the best state since the last decision, the earliest of equals.

        Before its last decision a method may be above the budget, and has other ranks than it ends with.
        """
        last = self.rows[-1]
        sign = 1 if METRICS[self.objective.task.metrics[0]].higher_is_better else -1
        decided = [row for row in self.rows if row["decisions"] == last["decisions"]]
        return int((last if self.last_only else max(decided, key=lambda row: sign * row["score"]))["step"])
