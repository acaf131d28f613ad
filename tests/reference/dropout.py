"""A dropout mask, element by element."""

from __future__ import annotations

import numpy as np
from torch import Tensor, tensor

from peftprune.strategy.rng import stream_seed

ROW_DISTANCE = 0x9E3779B97F4A7C15F39CC0605CEDC835


def mask(seed: int, step: int, first_row: int, module: str, call: int, rows: int, elements: int, p: float) -> Tensor:
    """(rows, elements): 1 / (1 - p) where the element's 16-bit word lies below (1 - p) · 2^16, else 0."""
    found = []
    for row in range(rows):
        source = np.random.PCG64DXSM(stream_seed(seed, "dropout", step, module, call))
        for _ in range(first_row + row):
            source.advance(ROW_DISTANCE)
        values: list[float] = []
        while len(values) < elements:
            number = int(source.random_raw())
            for part in range(4):
                word = (number >> (16 * part)) % 2**16
                values.append(1 / (1 - p) if word < round((1 - p) * 2**16) else 0.0)
        found.append(values[:elements])
    return tensor(found)
