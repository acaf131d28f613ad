"""Carves validation data from a task, so that settings are chosen without its reported split."""

from dataclasses import replace
from typing import Any

import numpy as np

from peftprune.errors import UsageError
from peftprune.tasks.kinds import KINDS
from peftprune.tasks.task import Task

SHARE, LEAST, MOST = 0.2, 200, 1_000
"""Validation data is this share of the training data, at least and at most this many examples."""


def carve(task: Task, *, refit: bool = False, select: bool = False, seed: int = 0) -> tuple[Task, Task, dict[str, Any]]:
    """Returns the task to tune on, the task to train in the end, and what `study.json` says about the validation data.

    The first holds nothing of the reported split: it trains on the training data without the validation data, and
    evaluates on these. Validation data of the task's own is taken as it is; otherwise it is drawn from the seed, for
    classification with equal shares of every class. With `refit` the second trains on all training data, the validation
    data included; with `select` both hold the validation data, to select a checkpoint on. Raises UsageError if too few
    training examples are left, or a class has none on one side.
    """
    if task.validation is not None:
        train, validation, origin = task.train, task.validation, "the task's own"
    else:
        chosen = _drawn(task, seed)
        rest = np.setdiff1d(np.arange(len(task.train)), chosen)
        train, validation = task.train.select(rest.tolist()), task.train.select(chosen.tolist())
        origin = f"drawn from the training data, seed {seed}"
    tuned = replace(
        task, train=train, evaluation={"validation": validation}, validation=None, evaluation_split="validation"
    )
    final = task if refit else replace(task, train=train)
    if select:
        tuned, final = (replace(t, validation=validation) for t in (tuned, final))
    return tuned, final, {"examples": len(validation), "train_examples": len(train), "origin": origin, "refit": refit}


def _drawn(task: Task, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Returns the indices of the drawn validation examples, ascending."""
    count = len(task.train)
    size = min(MOST, max(LEAST, round(SHARE * count)))
    cure = "Give validation data (--validation-file), or more training data"
    if count < 2 * size:
        problem = f"leaves fewer training examples than the {size} validation examples that tuning needs"
        raise UsageError.of(f"task {task.name}", f"{count:,} training examples", problem, cure)
    if not KINDS[task.kind].has_classes:
        return np.sort(np.random.default_rng(seed).permutation(count)[:size])
    from sklearn.model_selection import train_test_split

    labels = np.asarray(task.train["label"])
    least = int(np.bincount(labels, minlength=task.num_labels).min())
    if least < 2 or size < task.num_labels:
        problem = f"has {least} examples of one class, so that validation or training data would have none"
        raise UsageError.of(f"task {task.name}", f"{count:,} training examples", problem, cure)
    _, chosen = train_test_split(np.arange(count), test_size=size, stratify=labels, random_state=seed)
    if len(set(labels[chosen])) < len(set(labels)):
        problem = f"leaves a class out of the {size} validation examples"
        raise UsageError.of(f"task {task.name}", f"{count:,} training examples", problem, cure)
    return np.sort(chosen)
