"""What the methods that train ΔW = s · B · diag(gate) · A have in common beside their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peftprune.adapters.initial import init_normal
from peftprune.strategy.sites import Site

INITIAL_STD = 0.02
"""Standard deviation of the initial A and B (authors' code of AdaLoRA, IncreLoRA and ElaLoRA)."""


def new_components(
    site: Site, kept: Sequence[int], extra: int, rng: torch.Generator, *, orthonormal: bool = False
) -> dict[str, Tensor]:
    """Values for a plan that cuts a site to `kept` and grows it by `extra` components: the old ones and the new.

    New gates are 0, so that the function does not change; new rows of A and columns of B are drawn from N(0, 0.02²).

    Args:
        site: as it is before the plan.
        kept: indices of the components that stay.
        extra: how many new ones follow them, at least 1.
        rng: draws the new values.
        orthonormal: take from each new row and column what lies in the span of the others (exactly so where those are
            orthonormal) and give it length 1, as ElaLoRA does.

    Returns:
        "A", "B" and "gate" in their new shapes.
    """
    index = torch.as_tensor(list(kept), dtype=torch.long, device=site.A.device)
    A, B, gate = site.A[index], site.B[:, index], site.gate
    if orthonormal:
        for _ in range(extra):
            A = torch.cat([A, _direction(A, rng)])
            B = torch.cat([B, _direction(B.T, rng).T], 1)
    else:
        A = torch.cat([A, init_normal("A", site.shape, extra, INITIAL_STD, rng).to(A)])
        B = torch.cat([B, init_normal("B", site.shape, extra, INITIAL_STD, rng).to(B)], 1)
    assert gate is not None
    return {"A": A, "B": B, "gate": torch.cat([gate[index], gate.new_zeros(extra)])}


def _direction(rows: Tensor, rng: torch.Generator) -> Tensor:
    """(1, width): a random row without its projection on the others."""
    new = torch.randn(rows.shape[1], generator=rng).to(rows)
    new = new - rows.T @ (rows @ new)
    return (new / (new.norm() + 1e-6))[None]


def share_of_scores(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Each site's share of the sum of all components' scores; 0 everywhere where all are 0."""
    totals = {name: float(found.sum()) for name, found in scores.items()}
    whole = sum(totals.values())
    return {name: total / whole if whole > 0 else 0.0 for name, total in totals.items()}
