"""A slow twin of the learning-rate schedule: one step after another."""

from __future__ import annotations

import math


def factors(segments: list[int], warmup_ratio: float) -> list[float]:
    """The factor of each step, for segments of so many steps: (i + 1)/(w + 1) up, then (n − i)/(n − w) down."""
    found = []
    for n in segments:
        w = min(math.ceil(warmup_ratio * n), n - 1)
        for i in range(n):
            found.append((i + 1) / (w + 1) if i < w else (n - i) / (n - w))
    return found
