"""Training settings of the GLUE scripts that authors released, for `PaperSettings.per_task`."""

from __future__ import annotations

from typing import Any

from peftprune.tasks.glue import GLUE

_BATCH_SIZE = 32


def _task(
    task: str,
    learning_rate: float,
    epochs: int,
    warmup: float,
    max_length: int,
    weight_decay: float,
    dropout: float = 0,
) -> tuple[str, dict[str, Any]]:
    """Returns a task's settings; a warm-up of 1 or more counts steps, one below 1 is a share of the run."""
    steps = epochs * -(-GLUE[task].train_size // _BATCH_SIZE)
    share = warmup if warmup < 1 else round(warmup / steps, 4)
    named = {"learning_rate": learning_rate, "epochs": epochs, "warmup_ratio": share, "max_length": max_length}
    return task, named | {"batch_size": _BATCH_SIZE, "weight_decay": weight_decay, "lora_dropout": dropout}


ADALORA: dict[str, dict[str, Any]] = dict(
    [
        _task("mnli", 5e-4, 7, 1000, 256, 0.0),
        _task("sst2", 8e-4, 24, 1000, 128, 0.01),
        _task("mrpc", 1e-3, 30, 0.1, 320, 0.01),
        _task("cola", 8e-4, 25, 100, 64, 0.0),
        _task("qnli", 5e-4, 5, 500, 512, 0.01),
        _task("qqp", 8e-4, 5, 2000, 320, 0.01),
        _task("rte", 1.2e-3, 50, 200, 320, 0.01),
        _task("stsb", 2.2e-3, 25, 100, 128, 0.1),
    ]
)
"""QingruZhang/AdaLoRA, NLU/scripts: DeBERTaV3-base, all linear layers, a linear schedule."""

INCRELORA: dict[str, dict[str, Any]] = dict(
    [
        _task("mnli", 5e-4, 7, 1000, 256, 0.0),
        _task("sst2", 8e-4, 24, 1000, 128, 0.01, 0.3),
        _task("mrpc", 1e-3, 30, 100, 320, 0.01, 0.3),
        _task("cola", 1e-3, 25, 100, 64, 0.0),
        _task("qnli", 9e-4, 5, 500, 512, 0.01),
        _task("qqp", 6e-4, 7, 1000, 320, 0.01),
        _task("rte", 1.2e-3, 50, 100, 320, 0.01),
    ]
)
"""FeiyuZhang98/IncreLoRA, NLU/scripts for a mean rank of 8: DeBERTaV3-base, all linear layers, a linear schedule.

The script for STS-B has a mean rank of 2, so the task is left out.
"""

LORPA: dict[str, dict[str, Any]] = {
    "mnli": {"batch_size": 16, "learning_rate": 3e-4, "epochs": 30, "max_length": 512},
    "sst2": {"batch_size": 16, "learning_rate": 6e-5, "epochs": 60, "max_length": 512},
    "mrpc": {"batch_size": 16, "learning_rate": 4e-4, "epochs": 30, "max_length": 512},
    "cola": {"batch_size": 32, "learning_rate": 4e-4, "epochs": 80, "max_length": 512},
    "qnli": {"batch_size": 32, "learning_rate": 4e-4, "epochs": 25, "max_length": 512},
    "qqp": {"batch_size": 16, "learning_rate": 5e-4, "epochs": 25, "max_length": 512},
    # The scripts search the learning rate of these two tasks, so none is set here.
    "rte": {"batch_size": 32, "epochs": 80, "max_length": 512},
    "stsb": {"batch_size": 16, "epochs": 40, "max_length": 512},
}
"""JuHyng/LoRPA: the scripts for the base model, query and value."""
