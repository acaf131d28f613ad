"""Slow twins of gates that are driven to zero: one gate after another, plain numbers."""

from __future__ import annotations


def soft(gates: list[float], threshold: float) -> list[float]:
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


def proximal(gates: list[float], threshold: float) -> list[float]:
    """The released step: each gate loses the threshold, and what is then below it becomes zero."""
    found = []
    for g in gates:
        if g > threshold:
            g -= threshold
        elif g < -threshold:
            g += threshold
        found.append(0.0 if -threshold < g < threshold else g)
    return found


def penalty(gates: dict[str, list[float]], weight: float) -> float:
    """The weight times the mean magnitude of all gates together."""
    total, count = 0.0, 0
    for values in gates.values():
        for g in values:
            total += abs(g)
            count += 1
    return weight * total / count


def kept(history: list[dict[str, list[float]]], costs: dict[str, int], params: int) -> dict[str, list[int]]:
    """Components in the order of their last gate, zeros in the order in which they vanished, while the budget pays."""
    last = history[-1]
    entries = []
    for name, values in last.items():
        for k, g in enumerate(values):
            lived = 0
            for step, gates in enumerate(history):
                if gates[name][k] != 0:
                    lived = step + 1
            entries.append((abs(g) > 0, abs(g) if g else lived, name, k))
    found: dict[str, list[int]] = {name: [] for name in last}
    for _, _, name, k in sorted(entries, key=lambda e: (not e[0], -e[1])):
        if costs[name] <= params:
            params -= costs[name]
            found[name].append(k)
    return {name: sorted(indices) for name, indices in found.items()}


def gradient_step(gates: list[float], gradients: list[float], rate: float) -> list[float]:
    """g − rate · ∇g."""
    found = []
    for k in range(len(gates)):
        found.append(gates[k] - rate * gradients[k])
    return found
