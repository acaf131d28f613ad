"""Slow twins of L1RA's gates and of the reassignment: one gate, one unit of rank after another."""

from __future__ import annotations


def shrink(gates: list[float], amount: float) -> list[float]:
    """Every gate loses the amount, and stays within 0 and 1."""
    found = []
    for c in gates:
        c = c - amount if c > amount else 0.0 if c >= -amount else c + amount
        found.append(0.0 if c < 0 else 1.0 if c > 1 else c)
    return found


def reassign(
    gates: dict[str, list[float]], threshold: float, costs: dict[str, int], caps: dict[str, int], params: int
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The components that stay at every site, and the units that are added to each."""
    kept: dict[str, list[int]] = {}
    for name, values in gates.items():
        kept[name] = [k for k in range(len(values)) if values[k] >= threshold]
        if not kept[name]:
            best = 0
            for k in range(len(values)):
                if values[k] > values[best]:
                    best = k
            kept[name] = [best]
    added = dict.fromkeys(gates, 0)
    if all(len(kept[name]) == len(gates[name]) for name in gates):
        return kept, added
    needy, others = [], []
    for name in sorted(gates, key=lambda n: -min(gates[n])):
        (needy if min(gates[name]) >= threshold else others).append(name)
    left = params - sum(len(kept[name]) * costs[name] for name in gates)
    for group in (needy, needy + others):
        turn, passed = 0, 0
        while group and passed < len(group):
            name = group[turn % len(group)]
            turn += 1
            if len(kept[name]) + added[name] < caps[name] and costs[name] <= left:
                added[name] += 1
                left -= costs[name]
                passed = 0
            else:
                passed += 1
    return kept, added
