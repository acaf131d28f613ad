"""Selection by score: exact counts, and among equal scores the lower index first."""

from collections.abc import Mapping

import torch
from torch import Tensor

from peftprune.errors import UsageError


def keep_top(scores: Tensor, n: int) -> list[int]:
    """Returns the indices of the `n` highest scores, ascending. Among equal scores the lower index is kept.

    Raises UsageError where n is not from 0 to the number of scores, or scores are not finite.
    """
    if not 0 <= n <= len(scores):
        raise UsageError.of("n", n, f"is outside 0..{len(scores)}", "Keep at most that many")
    if not bool(torch.isfinite(scores).all()):
        raise UsageError.of("scores", scores.tolist(), "are not all finite", "Check the loss; lower the learning rate")
    order = torch.sort(scores, descending=True, stable=True).indices[:n]
    return sorted(order.tolist())


def lowest_mask(scores: Tensor, n: int) -> Tensor:
    """Returns a mask in the shape of (rows, columns) scores that marks the `n` lowest of each row.

    Among equal scores the lower index comes first.
    """
    order = torch.sort(scores, dim=1, stable=True).indices[:, :n]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def share_held(scores: Tensor, held: Tensor | slice) -> float:
    """Returns the share of the total score (each at least 0) in the held entries; 0.0 where every score is 0."""
    total = float(scores.sum())
    return float(scores[held].sum()) / total if total > 0 else 0.0


def until_share(scores: dict[str, float], share: float) -> list[str]:
    """Returns names in descending score until their sum first reaches `share` of the total, the last one included.

    Scores are at least 0, and equal ones keep their order. Source: LoRA-drop (Zhou et al., COLING 2025), section 3.
    """
    total = sum(scores.values())
    kept, running = [], 0.0
    for name in sorted(scores, key=lambda n: -scores[n]):
        kept.append(name)
        running += scores[name]
        # A sum that equals the share must reach it in spite of rounding.
        if running >= share * total * (1 - 1e-12):
            break
    return kept


def keep_top_global(scores: Mapping[str, Tensor], unit_costs: Mapping[str, int], params: int) -> dict[str, list[int]]:
    """Returns the highest-scoring rank components of all sites together that fit a number of parameters.

    Components are taken in descending score. One that costs more than the remaining parameters is skipped, and cheaper
    ones with lower scores are still taken, so the remainder is less than the cost of any component that was not taken.

    By site, `scores` are those of its components, (r,), and `unit_costs` the cost of one, above 0. Among equal scores
    the earlier site comes first, then the lower index. The result is each site's kept indices, ascending. Raises
    UsageError for scores that are not finite.
    """
    if not scores:
        return {}
    sizes = [len(s) for s in scores.values()]
    # One transfer to the host. Doubles represent every score of a narrower type exactly, so ties stay ties.
    flat = torch.cat([s.detach().flatten().float() if s.dtype != torch.float64 else s for s in scores.values()])
    flat = flat.cpu().double()
    if not bool(torch.isfinite(flat).all()):
        raise UsageError.of("scores", "(some)", "are not all finite", "Check the loss; lower the learning rate")
    costs = torch.tensor([int(unit_costs[name]) for name in scores])
    cost = torch.repeat_interleave(costs, torch.tensor(sizes))
    order = torch.sort(flat, descending=True, stable=True).indices
    kept, left = torch.zeros(len(flat), dtype=torch.bool), params
    while len(order):
        order = order[cost[order] <= left]
        # Every round ends at a component that does not fit, which excludes all of its cost, so there are few rounds.
        fits = torch.cumsum(cost[order], 0) <= left
        kept[order[fits]] = True
        left -= int(cost[order[fits]].sum())
        order = order[~fits]
    parts = torch.split(kept, sizes)
    return {name: part.nonzero().flatten().tolist() for name, part in zip(scores, parts, strict=True)}


def units_that_fit(
    ranks: Mapping[str, int], unit_costs: Mapping[str, int], caps: Mapping[str, int], params: int
) -> dict[str, int]:
    """Returns site to further units of rank that fit the budget `params` at live sites, the most expensive sites first.

    `keep_top_global` can leave enough for another unit where every component of the cheapest sites is kept already; a
    plan that grows those sites by the result meets the budget. `caps` holds each site's largest possible rank.
    """
    left = params - sum(rank * unit_costs[name] for name, rank in ranks.items())
    found: dict[str, int] = {}
    for name in sorted((n for n, rank in ranks.items() if rank > 0), key=lambda n: -unit_costs[n]):
        units = min(left // unit_costs[name], caps[name] - ranks[name])
        if units > 0:
            found[name] = units
            left -= units * unit_costs[name]
    return found
