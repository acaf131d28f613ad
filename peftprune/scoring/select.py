"""Choosing by score: exact counts, and ties always to the lower index."""

from __future__ import annotations

import torch
from torch import Tensor

from peftprune.errors import UsageError


def keep_top(scores: Tensor, n: int) -> list[int]:
    """Indices of the `n` highest scores, ascending. Exactly n; among equal scores the lower index is kept.

    Args:
        scores: (r,), finite.
        n: 0 ≤ n ≤ r.

    Raises:
        UsageError: for n out of range or scores that are not finite.
    """
    if not 0 <= n <= len(scores):
        raise UsageError.of("n", n, f"is outside 0..{len(scores)}", "Keep no more than there are")
    if not bool(torch.isfinite(scores).all()):
        raise UsageError.of("scores", scores.tolist(), "are not all finite", "Check the loss; lower the learning rate")
    order = torch.sort(scores, descending=True, stable=True).indices[:n]
    return sorted(order.tolist())


def lowest_mask(scores: Tensor, n: int) -> Tensor:
    """A boolean mask of the `n` lowest scores in each row. Exactly n a row; among equal scores the lower index goes.

    Args:
        scores: (rows, columns).
        n: 0 ≤ n ≤ columns.

    Returns:
        (rows, columns), True for the lowest.
    """
    order = torch.sort(scores, dim=1, stable=True).indices[:, :n]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def share_held(scores: Tensor, held: Tensor) -> float:
    """What of the total score the held entries have: 1.0 for all of it, 0.0 where every score is 0.

    Args:
        scores: of any shape, at least 0.
        held: boolean, in the same shape.
    """
    total = float(scores.sum())
    return float(scores[held].sum()) / total if total > 0 else 0.0


def until_share(scores: dict[str, float], share: float) -> list[str]:
    """Names in descending score until their sum first reaches `share` of the total; the crossing one is included.

    Args:
        scores: name to score, each at least 0; equal scores keep their order.
        share: in (0, 1].

    Source: LoRA-drop (Zhou et al., COLING 2025), section 3.
    """
    total = sum(scores.values())
    kept, running = [], 0.0
    for name in sorted(scores, key=lambda n: -scores[n]):
        kept.append(name)
        running += scores[name]
        # A sum that reaches the share exactly must not miss it by its last bit.
        if running >= share * total * (1 - 1e-12):
            break
    return kept
