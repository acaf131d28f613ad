"""AdaLoRA's scores of rank components while components are pruned and added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftprune.scoring.gradient import SmoothedSensitivity
from peftprune.strategy.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

RANK_DIMENSION = {"A": 0, "B": 1, "gate": 0}


class TripletSensitivity:
    """The smoothed sensitivity of every entry of A, B and gate, combined into one score per rank component.

    A component k is the triplet of gate[k], A[k, :] and B[:, k]; its score is
    s(gate[k]) + mean_j s(A[k, j]) + mean_j s(B[j, k]), with s and the betas as in `SmoothedSensitivity`.

    Source: Zhang et al., ICLR 2023 (AdaLoRA), equations 7 to 10.
    """

    def __init__(self, beta1: float = 0.85, beta2: float = 0.85) -> None:
        self.entries = SmoothedSensitivity(beta1, beta2)

    def update(self, sites: Mapping[str, Site]) -> None:
        """Adds the sites' current weights and gradients; dropped sites are skipped."""
        for name, site in sites.items():
            if site.is_dropped:
                continue
            pairs = {"A": (site.A, site.grad_A), "B": (site.B, site.grad_B), "gate": (site.gate, site.grad_gate)}
            for tensor, (value, grad) in pairs.items():
                if value is not None and grad is not None:
                    self.entries.update(f"{name}/{tensor}", value.float(), grad.float())

    def scores(self, site: Site) -> Tensor:
        """Returns the scores of the site's components, (rank,), at least 0; zeros before the first update."""
        import torch

        total = torch.zeros(site.rank, device=site.A.device)
        for tensor, dim in RANK_DIMENSION.items():
            if f"{site.name}/{tensor}" in self.entries.mean:
                score = self.entries.score(f"{site.name}/{tensor}")
                total = total + (score if score.dim() == 1 else score.mean(1 - dim))
        return total

    def keep(self, name: str, indices: Sequence[int]) -> None:
        """Keeps only these components of the site, after the others were pruned."""
        for tensor, dim in RANK_DIMENSION.items():
            self.entries.keep(f"{name}/{tensor}", indices, dim)

    def grow(self, name: str, extra: int) -> None:
        """Appends new components, whose averages start at 0."""
        for tensor, dim in RANK_DIMENSION.items():
            self.entries.grow(f"{name}/{tensor}", extra, dim)

    def state_dict(self) -> dict[str, Any]:
        return self.entries.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.entries.load_state_dict(state)
