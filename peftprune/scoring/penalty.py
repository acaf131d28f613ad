from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from peftprune.strategy.sites import LiveTensors

PenaltyForm = Literal["norm", "square"]


def orthogonality(sites: Mapping[str, LiveTensors], form: PenaltyForm = "norm") -> Tensor:
    """Returns the distance of all rank components from orthonormality: ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖, differentiable.

    `norm`: the mean of the Frobenius norms over all matrices, as in the authors' code. `square`: the sum of their
    squares, as in the paper (equation 4). There must be at least one site.

    Source: Zhang et al., ICLR 2023 (AdaLoRA), and its code.
    """
    grams = [gram for site in sites.values() for gram in (site.A @ site.A.T, site.B.T @ site.B)]
    norms = [torch.linalg.matrix_norm(g - torch.eye(len(g), device=g.device, dtype=g.dtype)) for g in grams]
    stacked = torch.stack(norms)
    return stacked.mean() if form == "norm" else stacked.square().sum()
