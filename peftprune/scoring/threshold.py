"""Thresholding operators, which make gates exactly zero."""

import torch
from torch import Tensor


def soft_threshold(x: Tensor, t: float) -> Tensor:
    """Returns sign(x) · max(|x| − t, 0), the proximal operator of t · ‖x‖₁ with t at least 0."""
    return x.sign() * (x.abs() - t).clamp(min=0.0)


def hard_threshold(x: Tensor, k: int) -> Tensor:
    """Returns `x` with all but the k entries of largest magnitude set to zero, the projection onto ‖x‖₀ ≤ k.

    Among equal magnitudes the lower index stays.
    """
    order = torch.sort(x.abs(), descending=True, stable=True).indices
    return x.index_fill(0, order[k:], 0.0)
