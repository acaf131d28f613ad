"""Scores from weights and gradients, of entries and of the rank components that they make up."""

from collections.abc import Mapping, Sequence
from typing import Any

from peftprune.strategy.lazy import Tensor, torch
from peftprune.strategy.sites import Site

RANK_DIMENSION = {"A": 0, "B": 1, "gate": 0}


def sensitivity(param: Tensor, grad: Tensor) -> Tensor:
    """Returns |w · ∇w|, the first-order estimate of the loss change when w becomes zero, in the shape of `param`.

    Source: Zhang et al., ICLR 2023 (AdaLoRA), equation 8.
    """
    return (param * grad).abs()


class SmoothedSensitivity:
    """AdaLoRA's smoothed sensitivity times its uncertainty, per named tensor.

    Ī ← β1 · Ī + (1 − β1) · I;  U ← β2 · U + (1 − β2) · |I − Ī|;  score = Ī · U, with I = |w · ∇w|, both betas in (0, 1)
    and both averages starting at zero.

    Source: Zhang et al., ICLR 2023 (AdaLoRA), equations 9 and 10.
    """

    def __init__(self, beta1: float = 0.85, beta2: float = 0.85) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean: dict[str, Tensor] = {}
        self.uncertainty: dict[str, Tensor] = {}

    def update(self, name: str, param: Tensor, grad: Tensor) -> None:
        self.add(name, sensitivity(param, grad))

    def add(self, name: str, value: Tensor) -> None:
        """Adds one step's sensitivity of `name`, at least 0 and always of the same shape."""
        mean = self.mean.get(name, value.new_zeros(value.shape))
        uncertainty = self.uncertainty.get(name, value.new_zeros(value.shape))
        self.mean[name] = mean = self.beta1 * mean + (1 - self.beta1) * value
        self.uncertainty[name] = self.beta2 * uncertainty + (1 - self.beta2) * (value - mean).abs()

    def score(self, name: str) -> Tensor:
        return self.mean[name] * self.uncertainty[name]

    def keep(self, name: str, indices: Sequence[int], dim: int) -> None:
        """Keeps only these indices along one dimension, after the tensor was pruned."""
        for average in (self.mean, self.uncertainty):
            if name in average:
                index = torch.as_tensor(list(indices), dtype=torch.long, device=average[name].device)
                average[name] = average[name].index_select(dim, index)

    def grow(self, name: str, extra: int, dim: int) -> None:
        """Appends `extra` entries along one dimension, after the tensor grew; their averages start at zero."""
        for average in (self.mean, self.uncertainty):
            if name in average:
                shape = list(average[name].shape)
                shape[dim] = extra
                average[name] = torch.cat([average[name], average[name].new_zeros(shape)], dim)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": dict(self.mean), "uncertainty": dict(self.uncertainty)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.uncertainty = dict(state["mean"]), dict(state["uncertainty"])


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
