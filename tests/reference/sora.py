"""Slow twins of gates that are driven to zero: one gate after another, plain numbers."""

from __future__ import annotations


def proximal(gates: list[float], threshold: float) -> list[float]:
    """sign(g) · max(|g| − threshold, 0)."""
    found = []
    for g in gates:
        if g > threshold:
            found.append(g - threshold)
        elif g < -threshold:
            found.append(g + threshold)
        else:
            found.append(0.0)
    return found


def gradient_step(gates: list[float], gradients: list[float], rate: float) -> list[float]:
    """g − rate · ∇g."""
    found = []
    for k in range(len(gates)):
        found.append(gates[k] - rate * gradients[k])
    return found
