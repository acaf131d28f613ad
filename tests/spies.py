"""A strategy that stands in for another, passes every call on, and lets a test look around each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from peftprune.strategy.interface import RankPruningStrategy

CALLS = ("spec", "phases", "start", "before_step", "frozen_components", "penalty", "observe", "decide", "end_phase")


class Spy(RankPruningStrategy):
    """Passes every call on to `inner`, through `around(call name, call, arguments)`."""

    name = "spy"

    def __init__(self, inner: RankPruningStrategy, around: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]):
        self.inner = inner
        self.config = inner.config
        self.signals = inner.signals  # type: ignore[misc]
        for name in CALLS:
            setattr(self, name, self._passing(name, around))
        self.state_dict = inner.state_dict  # type: ignore[method-assign]
        self.load_state_dict = inner.load_state_dict  # type: ignore[method-assign]

    def _passing(self, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: around(name, getattr(self.inner, name), arguments)


def digest(tensors: Iterable[Tensor | None]) -> str:
    """A hash of the tensors' shapes and bits."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is None:
            found.update(b"none")
        else:
            found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def everything(model: Any, optimizer: Any) -> str:
    """A hash of parameters, gradients, buffers, optimizer state and the global random state."""
    inner = getattr(optimizer, "optimizer", optimizer)
    parameters = list(model.parameters())
    state = []
    if inner is not None:
        for parameter in parameters:
            state += [v for _, v in sorted(inner.state.get(parameter, {}).items()) if isinstance(v, Tensor)]
    gradients = [p.grad for p in parameters]
    return digest([*parameters, *gradients, *model.buffers(), *state, torch.get_rng_state()])
