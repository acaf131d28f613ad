"""Scores from weights and activations."""

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
