"""Scores from weights and gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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
        self.beta1 = beta1
        self.beta2 = beta2
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
                import torch

                index = torch.as_tensor(list(indices), dtype=torch.long, device=average[name].device)
                average[name] = average[name].index_select(dim, index)

    def grow(self, name: str, extra: int, dim: int) -> None:
        """Appends `extra` entries along one dimension, after the tensor grew; their averages start at zero."""
        for average in (self.mean, self.uncertainty):
            if name in average:
                import torch

                shape = list(average[name].shape)
                shape[dim] = extra
                average[name] = torch.cat([average[name], average[name].new_zeros(shape)], dim)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": dict(self.mean), "uncertainty": dict(self.uncertainty)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean = dict(state["mean"])
        self.uncertainty = dict(state["uncertainty"])
