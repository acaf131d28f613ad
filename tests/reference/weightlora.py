"""A slow twin of iterative hard thresholding on one weight per adapter: plain numbers, one site after another."""

from __future__ import annotations


def step(weights: dict[str, float], gradients: dict[str, float], rate: float, k: int) -> dict[str, float]:
    """One gradient step and one projection onto at most k weights that are not zero."""
    moved = False
    for g in gradients.values():
        moved = moved or abs(g) > 1e-10
    if not moved:
        return dict(weights)
    stepped = {name: weights[name] - rate * gradients[name] for name in weights}
    kept = largest(stepped, k)
    return {name: value if name in kept else 0.0 for name, value in stepped.items()}


def largest(weights: dict[str, float], k: int) -> list[str]:
    """The k names of largest magnitude, found one after another; the first of equals wins."""
    found: list[str] = []
    while len(found) < min(k, len(weights)):
        best = None
        for name, value in weights.items():
            if name not in found and (best is None or abs(value) > abs(weights[best])):
                best = name
        assert best is not None
        found.append(best)
    return found
