"""The singular values of an update B A, from its factors."""

import torch
from torch import Tensor


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
