"""Training settings of the scripts that authors released for GLUE, as `PaperSettings.per_task` takes them.

Both sets are for DeBERTaV3-base with all linear layers adapted, in batches of 32 with a linear schedule.
"""

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
    """A row; a warm-up of 1 or more counts steps, one below 1 is a share of the run."""
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
"""QingruZhang/AdaLoRA, NLU/scripts."""

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
"""FeiyuZhang98/IncreLoRA, NLU/scripts for a mean rank of 8. The one for STS-B there has a mean rank of 2."""
