"""Dropout whose masks are a function of (seed, step, module, row) instead of one running stream.

Such a mask does not depend on how a step is split into micro-batches (rows of one padded length), where a run is
resumed, or what other arms do. It is also cheap: a 16-bit word of a raw generator is compared with a threshold, where
`torch.nn.functional.dropout` on a CPU draws every element from a distribution.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftprune.strategy.rng import stream_seed
from peftprune.training.distributed import process_index

_WORDS = 1 << 16
_ROW_STRIDE = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Distance of two rows in a generator's cycle of 2^128 numbers: odd, as in numpy's `jumped`, since generators of this
family are correlated at distances that are powers of two."""
# numpy writes a kept element as the bits of its scale, which torch reads as that dtype.
_BITS: dict[torch.dtype, tuple[torch.dtype, type[np.signedinteger]]] = {
    torch.float32: (torch.int32, np.int32),
    torch.bfloat16: (torch.int16, np.int16),
    torch.float16: (torch.int16, np.int16),
}


class MaskStream:
    """The masks of one training run, drawn from the arm's seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._step = 0
        self._first_row = 0
        self._rows = 0
        self._calls: dict[str, int] = {}
        self._recomputes = False

    def begin_step(self, step: int) -> None:
        self._step, self._rows = step, 0
        # Processes that train together hold different rows of a step.
        self._first_row = process_index() << 32

    def begin_batch(self, rows: int) -> None:
        self._first_row += self._rows
        self._rows = rows
        self._calls = {}
        self._recomputes = False

    def end_batch(self) -> None:
        """Announces that activation checkpointing recomputes from here on, in reverse order."""
        self._recomputes = True

    def _call(self, module: str) -> int:
        """Returns the index of the module's call within the micro-batch; recomputation runs in reverse order."""
        calls = self._calls.get(module, 0)
        self._calls[module] = calls - 1 if self._recomputes else calls + 1
        return min(calls, self._calls[module])

    def mask(self, module: str, shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor:
        """Returns a mask that is 1 / (1 - p) where an element stays and 0 elsewhere; the first dimension counts rows.

        Each call of a module within a micro-batch has another mask. p, in (0, 1), is rounded to a multiple of 2^-16, at
        least one. The scale is rounded to `dtype` (float32, bfloat16 or float16), as torch's own dropout does.
        """
        source = np.random.PCG64DXSM(stream_seed(self.seed, "dropout", self._step, module, self._call(module)))
        rows, elements = shape[0], math.prod(shape[1:])
        words = np.empty((rows, -(-elements // 4)), np.uint64)
        source.advance(self._first_row * _ROW_STRIDE)
        beginning = source.state
        for row in range(rows):
            source.state = beginning
            source.advance(row * _ROW_STRIDE)
            words[row] = source.random_raw(words.shape[1])
        bits, integer = _BITS[dtype]
        scale = torch.tensor(1 / (1 - p)).to(dtype).view(bits).item()
        keep = (
            np.less(words.view(np.uint16), round((1 - p) * _WORDS)) if p * _WORDS >= 0.5 else np.ones_like(words, bool)
        )
        kept = np.multiply(keep.view(np.int8), integer(scale), dtype=integer)
        return torch.from_numpy(kept).view(dtype)[:, :elements].view(tuple(shape))


class KeyedDropout(nn.Module):
    """Replaces the `nn.Dropout` of that name, with the same distribution. Off in eval mode, like any dropout."""

    def __init__(self, p: float, stream: MaskStream, name: str) -> None:
        super().__init__()
        self.p = p
        self.stream = stream
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if x.dtype not in _BITS or x.device.type != "cpu" or x.dim() == 0:
            return nn.functional.dropout(x, self.p)
        return x * self.stream.mask(self.name, x.shape, self.p, x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def use_keyed_dropout(model: nn.Module, stream: MaskStream) -> None:
    """Replaces every active `nn.Dropout` of a model. Dropouts of other classes or inside functions stay as they are.

    The model announces every training batch to the stream; the trainer announces the steps.
    """
    found = [(n, m) for n, m in model.named_modules() if type(m) is nn.Dropout and 0 < m.p < 1]
    for name, module in found:
        model.set_submodule(name, KeyedDropout(module.p, stream, name).train(module.training))

    def batch_begins(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            tensors = (value for value in [*args, *kwargs.values()] if isinstance(value, Tensor) and value.dim())
            stream.begin_batch(len(next(tensors)))

    model.register_forward_pre_hook(batch_begins, with_kwargs=True)
    model.register_forward_hook(lambda *_: stream.end_batch())
