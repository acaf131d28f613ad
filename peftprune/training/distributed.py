"""Several processes that train one model: the same sums, the same gradients and the same decisions in each.

The adapters' gradients are averaged here and not by `DistributedDataParallel`, whose buckets have the sizes that the
tensors had when the model was wrapped. So ranks change in the tensors themselves, as with one process. With one
process every function here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from peftprune.errors import RunError

ANCHOR = "peftprune_anchor"
"""A parameter that is never used: the wrapper refuses a model that leaves it nothing to look after."""


def world_size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def sum_over_processes(tensors: MutableMapping[Any, Tensor]) -> None:
    """Replace every tensor by its sum over all processes. Keys come in the same order everywhere."""
    if world_size() > 1:
        for tensor in tensors.values():
            distributed.all_reduce(tensor)


def check_agreement(value: Callable[[], object], what: str) -> None:
    """Stop where processes went different ways: their adapters would no longer be one model's.

    Raises:
        RunError: in every process alike.
    """
    if world_size() == 1:
        return
    found: list[object] = [None] * world_size()
    distributed.all_gather_object(found, value())
    if any(other != found[0] for other in found):
        raise RunError(f"processes: {what} differ between them. Give all processes the same seed, model and data")


def leave_to_us(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Have `DistributedDataParallel` leave these parameters alone. Call before the model is wrapped."""
    if world_size() == 1:
        return
    ours = {id(p) for p in parameters}
    if not any(p.requires_grad and id(p) not in ours for p in model.parameters()):
        device = next(model.parameters()).device
        model.register_parameter(ANCHOR, nn.Parameter(torch.zeros(1, device=device)))
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in ours]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


class GradientAverage:
    """Averages gradients over the processes as they arrive, in the last micro-batch of each step."""

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}

    def follow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average these from now on; those that are known already stay as they are."""
        if world_size() == 1:
            return
        for param in parameters:
            if param.requires_grad and id(param) not in self._handles:
                self._handles[id(param)] = param.register_post_accumulate_grad_hook(_average)

    def remove(self, model: nn.Module) -> None:
        """Leave no trace."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        model._parameters.pop(ANCHOR, None)
        if hasattr(model, "_ddp_params_and_buffers_to_ignore"):
            del model._ddp_params_and_buffers_to_ignore


def _average(param: nn.Parameter) -> None:
    from accelerate.state import GradientState

    # What was averaged before stays what it is: it is the same everywhere. So it does not matter that a gradient may
    # arrive in parts, from several micro-batches or from a tensor that several sites share.
    if GradientState().sync_gradients and param.grad is not None:
        distributed.all_reduce(param.grad)
        param.grad.div_(world_size())


def same_start(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the values of the first, as the wrapper does with what it looks after."""
    if world_size() > 1:
        for param in parameters:
            distributed.broadcast(param.data, 0)
