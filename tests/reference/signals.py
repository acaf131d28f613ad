"""Slow twins of the collected statistics, from inputs that were stored whole."""

from __future__ import annotations

import math

from torch import Tensor


def input_norm(stored: list[tuple[Tensor, Tensor | None]]) -> list[float]:
    """L2 norm of each feature over the real tokens of all micro-batches, (inputs (b, t, d), mask (b, t)) each."""
    squares = [0.0] * stored[0][0].shape[-1]
    for inputs, mask in stored:
        for b in range(inputs.shape[0]):
            for t in range(inputs.shape[1]):
                if mask is not None and int(mask[b, t]) == 0:
                    continue
                token = inputs[b, t].tolist()
                for j in range(len(token)):
                    squares[j] += token[j] ** 2
    return [math.sqrt(value) for value in squares]


def running_norm(norms: list[list[float]], beta: float) -> list[float]:
    """PRILoRA's x̄ ← β x̄ + (1 − β) norm over the steps, starting at 0."""
    running = [0.0] * len(norms[0])
    for norm in norms:
        for j in range(len(norm)):
            running[j] = beta * running[j] + (1 - beta) * norm[j]
    return running
