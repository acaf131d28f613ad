"""Faster ways to compute the same training step on a CPU; none of them changes a distribution or a decision."""

from peftprune.speed.attention import use_matmul_attention
from peftprune.speed.dropout import KeyedDropout, MaskStream, use_keyed_dropout
from peftprune.speed.precision import keep_frozen_weights_in

__all__ = ["KeyedDropout", "MaskStream", "keep_frozen_weights_in", "use_keyed_dropout", "use_matmul_attention"]
