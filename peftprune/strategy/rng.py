"""One random stream per purpose, each derived from the seed alone.

Streams never share a generator, so that a method which draws more numbers for one purpose changes nothing elsewhere:
the same seed gives the same head, batches and dropout stream.
"""

from __future__ import annotations

import hashlib

from peftprune.strategy.lazy import torch


def stream_seed(seed: int, *purpose: object) -> int:
    """Returns a 63-bit seed that depends on the arguments alone, for example `stream_seed(1, "order", epoch)`."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: object) -> torch.Generator:
    """Returns a fresh CPU generator for one purpose (see `stream_seed`)."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))
