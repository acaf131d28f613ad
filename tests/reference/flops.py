"""A slow twin of the analytic FLOPs: one token, one product, one multiply-add after another."""

from __future__ import annotations


def step_flops(
    tokens: int,
    length: int,
    linears: list[tuple[int, int]],
    widths: list[int],
    adapters: list[tuple[int, int, int]],
    train: bool,
) -> tuple[int, int]:
    """(base, adapters) of one pass.

    Args:
        tokens: padded tokens.
        length: how many tokens each of them attends to.
        linears: (d_in, d_out) of every frozen linear layer.
        widths: width of every attention.
        adapters: (rank, d_in, d_out) of every adapter.
        train: with backward.
    """
    base = adapter = 0
    for _ in range(tokens):
        for d_in, d_out in linears:
            forward = 2 * d_in * d_out
            by_input = forward if train else 0  # frozen weights need no gradient of their own
            base += forward + by_input
        for width in widths:
            scores, mixing = 2 * length * width, 2 * length * width
            base += scores + mixing
            if train:  # both factors of both products need a gradient
                base += 2 * (scores + mixing)
        for rank, d_in, d_out in adapters:
            forward = 2 * rank * d_in + 2 * rank * d_out
            adapter += forward
            if train:
                adapter += 2 * forward
    return base, adapter
