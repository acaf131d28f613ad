"""A slow twin of the rank solver, in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction


def solve_ranks(costs: list[int], caps: list[int], weights: list[int], params: int) -> list[int]:
    """Floor the real-valued targets with a minimum of 1, then largest remainder; ties go to the earlier site."""
    sites = range(len(costs))
    target = _targets(costs, caps, weights, params)
    rank = [max(1, math.floor(target[i])) for i in sites]
    # The minimum of 1 may have overspent.
    while sum(rank[i] * costs[i] for i in sites) > params:
        worst = None
        for i in sites:
            if rank[i] > 1 and (worst is None or rank[i] - target[i] > rank[worst] - target[worst]):
                worst = i
        assert worst is not None
        rank[worst] -= 1
    while True:
        left = params - sum(rank[i] * costs[i] for i in sites)
        best = None
        for i in sites:
            if costs[i] > left or rank[i] == caps[i]:
                continue
            if best is None or target[i] - rank[i] > target[best] - rank[best]:
                best = i
        if best is None:
            return rank
        rank[best] += 1


def _targets(costs: list[int], caps: list[int], weights: list[int], params: int) -> list[Fraction]:
    """Ranks in proportion to the weights; what a full site cannot take is spread over the others."""
    full: set[int] = set()
    while True:
        free = [i for i in range(len(costs)) if i not in full]
        if not free:
            return [Fraction(cap) for cap in caps]
        left = params - sum(caps[i] * costs[i] for i in full)
        level = Fraction(left, sum(weights[i] * costs[i] for i in free))
        over = [i for i in free if weights[i] * level > caps[i]]
        if not over:
            return [Fraction(caps[i]) if i in full else weights[i] * level for i in range(len(costs))]
        full.update(over)
