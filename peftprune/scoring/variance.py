"""Principal components of a layer's inputs from their summed moments."""

import torch
from torch import Tensor


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
