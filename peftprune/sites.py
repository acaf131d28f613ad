"""Sites: the adapted linear layers of a model, as shapes (for planning) and as live tensors (for training)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Stream = Literal["self", "encoder", "decoder", "cross"]


@dataclass(frozen=True)
class SiteShape:
    """One linear layer that may carry a LoRA, known by its shape alone.

    Attributes:
        name: fully qualified module name in the base model, for example
            `bert.encoder.layer.0.attention.self.query`.
        layer: depth of the transformer block that holds it, from 0, counted within its stack.
        kind: what the layer is within its block (`query`, `value`, `output.dense`, ...); the same string for the same
            role in every block. In encoder-decoder models it starts with `encoder.` or `decoder.`.
        d_in: input width.
        d_out: output width.
        stream: whose tokens it reads: "self" in models with one stack, else "encoder", "decoder", or "cross" (a key or
            value projection of cross-attention, which sits in the decoder and reads the encoder's tokens).
    """

    name: str
    layer: int
    kind: str
    d_in: int
    d_out: int
    stream: Stream = "self"

    @property
    def unit_cost(self) -> int:
        """Parameters that one unit of rank costs here: d_in + d_out."""
        return self.d_in + self.d_out

    @property
    def max_rank(self) -> int:
        """The largest rank that can add anything: min(d_in, d_out)."""
        return min(self.d_in, self.d_out)
