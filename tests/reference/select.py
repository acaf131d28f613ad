"""Slow twins of the choices over all sites together: one component after another, exact arithmetic."""

from __future__ import annotations


def keep_top_global(
    scores: dict[str, list[float]], unit_costs: dict[str, int], params: int, minimum: int = 0
) -> dict[str, list[int]]:
    """Take the best component that is left, if it can be paid for; the first of equals wins."""
    kept: dict[str, list[int]] = {name: [] for name in scores}
    left = params
    for name, values in scores.items():
        for _ in range(min(minimum, len(values))):
            best = None
            for k in range(len(values)):
                if k not in kept[name] and (best is None or values[k] > values[best]):
                    best = k
            assert best is not None
            kept[name].append(best)
            left -= unit_costs[name]
    if left < 0:
        raise ValueError("the minimum is above the budget")
    seen = {(name, k) for name, indices in kept.items() for k in indices}
    while True:
        winner = None
        for name, values in scores.items():
            for k in range(len(values)):
                if (name, k) not in seen and (winner is None or values[k] > scores[winner[0]][winner[1]]):
                    winner = (name, k)
        if winner is None:
            return {name: sorted(indices) for name, indices in kept.items()}
        seen.add(winner)
        if unit_costs[winner[0]] <= left:
            kept[winner[0]].append(winner[1])
            left -= unit_costs[winner[0]]
