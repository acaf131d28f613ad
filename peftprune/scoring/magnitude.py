"""Scores from the adapter's weights alone, and the singular values of an update B A."""

import math
from typing import Literal

import torch
from torch import Tensor

from peftprune.errors import UsageError

Form = Literal["hadamard", "outer"]


def rank_magnitude(A: Tensor, B: Tensor, form: Form = "hadamard") -> Tensor:
    """Returns LoRPA's score of each rank component of A (r, d_in) and B (d_out, r).

    `hadamard`: S_k = Σ_i |B[i, k] · A[k, i]|, as in the authors' released code; needs d_in = d_out.
    `outer`: S_k = Σ_ij |B[i, k] · A[k, j]| = ‖B[:, k]‖₁ · ‖A[k, :]‖₁; a convention for other shapes.

    Raises UsageError for `hadamard` with d_in ≠ d_out, and for an unknown form.

    Source: Kim, Kim and Kang, Mathematics 2024, 12(23), 3744, and its code.
    """
    if form == "outer":
        return B.abs().sum(0) * A.abs().sum(1)
    if form != "hadamard":
        raise UsageError.of("form", form, "is unknown", 'Give "hadamard" or "outer"')
    if A.shape[1] != B.shape[0]:
        problem = f"multiplies A {tuple(A.shape)} and B {tuple(B.shape)} elementwise"
        raise UsageError.of("form", form, problem, 'Give "outer"')
    return (B.T * A).abs().sum(1)


def update_svd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the singular value decomposition of B A from QR of both factors, at a cost of (d_in + d_out) · r².

    With A (r, d_in), B (d_out, r) and r at most min(d_in, d_out), the result is U (d_out, r) and V (r, d_in) with
    orthonormal columns and rows, and the singular values (r,), descending: B A = U · diag(S) · V. It has double
    precision, except on devices without it.
    """
    # Even without squaring, single precision would lose values far below the largest.
    exact = torch.float32 if A.device.type == "mps" else torch.float64
    left, core_B = torch.linalg.qr(B.to(exact))
    right, core_A = torch.linalg.qr(A.to(exact).T)
    U, S, V = torch.linalg.svd(core_B @ core_A.T, full_matrices=False)
    return left @ U, S, V @ right.T


def balancing_rotation(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the singular values of B A, and matrices T and S, (r, r), for which T A = √Σ V and B S = U √Σ.

    Components then descend in singular value, and both factors hold the same of it. Components whose singular value is
    0 become 0. See `update_svd`.
    """
    U, values, V = update_svd(A, B)
    inverse = torch.where(values > 0, values.rsqrt(), 0)
    return values, inverse[:, None] * (U.T @ B.to(U)), (A.to(V) @ V.T) * inverse


def norm_shares(A: Tensor, B: Tensor, gate: Tensor) -> Tensor:
    """Returns the Frobenius norm of each component of B · diag(gate) · A as a share of that of their sum, (r,).

    Shares can exceed 1, because components can cancel. They are 0 where the sum is.

    Source: Mao et al., ACL 2024, arXiv 2405.17357 (DoRA, dynamic rank), and its code.
    """
    rows, columns = (A * gate[:, None]).double(), B.double()
    total = ((rows @ rows.T) * (columns.T @ columns)).sum().clamp(min=0).sqrt()
    return rows.norm(dim=1) * columns.norm(dim=0) / (total + 1e-8)


def gate_entropy(gate: Tensor) -> float:
    """Returns how evenly a site uses its components, from 0 to 1: −Σ p log p / log r with shares p = gate² / Σ gate².

    One component alone has entropy 1, and gates (r,) that are all 0 have entropy 0; both are conventions.

    Source: Liu et al., ICLR 2026, arXiv 2601.22905 (FlexLoRA), and its code.
    """
    if len(gate) == 1:
        return 1.0
    energy = gate.double().square()
    return float(torch.special.entr(energy / energy.sum()).sum()) / math.log(len(gate)) if bool(gate.any()) else 0.0
