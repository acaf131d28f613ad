"""How far rank components are from being orthonormal: the penalty that AdaLoRA and its successors train with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from peftprune.strategy.sites import LiveTensors

PenaltyForm = Literal["norm", "square"]


def orthogonality(sites: Mapping[str, LiveTensors], form: PenaltyForm = "norm") -> Tensor:
    """‖A Aᵀ − I‖ and ‖Bᵀ B − I‖ in the Frobenius norm, over all sites; differentiable.

    `norm`: their mean over all matrices, as the authors' code has it. `square`: the sum of their squares, as the paper
    has it (equation 4).

    Args:
        sites: trainable tensors by site; at least one.
        form: which of the two.

    Returns:
        A scalar, at least 0.

    Source: Zhang et al., ICLR 2023 (AdaLoRA), and its code.
    """
    grams = [gram for site in sites.values() for gram in (site.A @ site.A.T, site.B.T @ site.B)]
    norms = [torch.linalg.matrix_norm(g - torch.eye(len(g), device=g.device, dtype=g.dtype)) for g in grams]
    stacked = torch.stack(norms)
    return stacked.mean() if form == "norm" else stacked.square().sum()
