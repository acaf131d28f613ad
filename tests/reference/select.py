"""Slow twins of the choices over all sites together: one component after another, exact arithmetic."""

from __future__ import annotations


def keep_top_global(scores: dict[str, list[float]], unit_costs: dict[str, int], params: int) -> dict[str, list[int]]:
    """Take the best component that is left, if it can be paid for; the first of equals wins."""
    kept: dict[str, list[int]] = {name: [] for name in scores}
    left = params
    seen: set[tuple[str, int]] = set()
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
