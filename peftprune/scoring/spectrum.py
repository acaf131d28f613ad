"""The singular values of an update B A, from its factors."""

from __future__ import annotations

import torch
from torch import Tensor


def update_svd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of B A without ever forming it, by QR of both factors: cost (d_in + d_out) · r².

    Args:
        A: (r, d_in).
        B: (d_out, r), r at most min(d_in, d_out).

    Returns:
        U (d_out, r) and V (r, d_in) with orthonormal columns and rows, and the singular values (r,), descending:
        B A = U · diag(S) · V. In double precision, except on devices that have none.
    """
    # Squaring never happens, but values far below the largest would still be lost in single precision.
    exact = torch.float32 if A.device.type == "mps" else torch.float64
    left, core_B = torch.linalg.qr(B.to(exact))
    right, core_A = torch.linalg.qr(A.to(exact).T)
    U, S, V = torch.linalg.svd(core_B @ core_A.T, full_matrices=False)
    return left @ U, S, V @ right.T
