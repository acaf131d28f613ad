"""Losses of classification and regression."""

from typing import Any

from torch import Tensor, nn


def classification_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Returns the cross-entropy of (batch, classes) logits, summed and divided by the optimizer step's examples."""
    total = nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def regression_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Returns the squared error of (batch, 1) logits, summed and divided by the optimizer step's examples."""
    total = nn.functional.mse_loss(outputs.logits.float().squeeze(-1), labels.float(), reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
