"""Scores from activations, with weights or alone."""

import torch
from torch import Tensor


def weight_times_input_norm(A: Tensor, input_norm: Tensor) -> Tensor:
    """Returns PRILoRA's score of each entry of A, (r, d_in): S_kj = |A_kj| · x̄_j, as in Wanda.

    `input_norm`, (d_in,), is the running L2 norm x̄ of each input feature over tokens.

    Source: Benedek and Wolf, Findings of EACL 2024, section 3 (the form of the score from secondary summaries).
    """
    return A.abs() * input_norm


def output_energy(A: Tensor, B: Tensor, x: Tensor, mask: Tensor | None, scaling: float) -> float:
    """Returns LoRA-drop's score of one site on one batch: Σ over real tokens of ‖scaling · B A x‖².

    `x`, (batch, length, d_in), is the site's input. `mask`, (batch, length), is 1 for real tokens; None includes all.

    Source: Zhou et al., COLING 2025, section 3 (the squared norm from secondary summaries).
    """
    y = torch.nn.functional.linear(torch.nn.functional.linear(x, A), B) * scaling
    squares = y.float().square().sum(-1)
    return float((squares if mask is None else squares * mask).sum())


def explained_variance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the share of the total variance that each principal direction explains, and the directions.

    They are the squared singular values of the centred inputs, divided by their sum, and the right singular vectors.
    Shares (d,) descend, and are all 0 where the inputs do not vary. Directions (d, d) are orthonormal, one a row, each
    with its largest entry positive. Both have double precision, except on devices without it. `moments` are
    `Signal.INPUT_MOMENTS`: (d + 1, d + 1), the sum of y yᵀ over tokens with y = (x, 1).
    """
    moments = moments.to(torch.float32 if moments.device.type == "mps" else torch.float64)
    second, sums, tokens = moments[:-1, :-1], moments[-1, :-1], moments[-1, -1]
    covariance = second - torch.outer(sums, sums) / tokens.clamp(min=1)
    values, vectors = torch.linalg.eigh(covariance)
    # `eigh` is ascending, and rounding can make zeros slightly negative.
    values, directions = values.flip(0).clamp(min=0), vectors.flip(1).T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    total = values.sum()
    shares = values / total if float(total) > 0 else torch.zeros_like(values)
    return shares, directions * largest.sign()
