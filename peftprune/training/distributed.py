"""Keeps several processes that train one model in agreement: equal sums, gradients and decisions.

The adapters' gradients are averaged here instead of by `DistributedDataParallel`, whose buckets keep the sizes that the
tensors had when the model was wrapped. So ranks can change as with one process. With one process every function here
does nothing.
"""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from peftprune.errors import RunError

ANCHOR = "peftprune_anchor"
"""Name of an unused parameter: DistributedDataParallel refuses a model without parameters to synchronise."""


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    return distributed.get_rank() if world_size() > 1 else 0


def sum_over_processes(tensors: MutableMapping[Any, Tensor]) -> None:
    """Replaces every tensor by its sum over all processes, whose mappings must have the same order."""
    if world_size() > 1:
        for tensor in tensors.values():
            distributed.all_reduce(tensor)


def check_agreement(value: Callable[[], object], what: str) -> None:
    """Checks that a value is the same in every process. Raises RunError in every process if it is not."""
    if world_size() == 1:
        return
    found: list[object] = [None] * world_size()
    distributed.all_gather_object(found, value())
    if any(other != found[0] for other in found):
        raise RunError(f"processes: {what} differ between them. Give all processes the same seed, model and data")


def exclude_from_ddp(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Excludes these parameters from `DistributedDataParallel`. Call before the model is wrapped."""
    if world_size() == 1:
        return
    excluded = {id(p) for p in parameters}
    if not any(p.requires_grad and id(p) not in excluded for p in model.parameters()):
        model.register_parameter(ANCHOR, nn.Parameter(torch.zeros(1, device=next(model.parameters()).device)))
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in excluded]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


class GradientAverage:
    """Averages gradients over the processes in the last micro-batch of each step, as they are computed."""

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Starts averaging the gradients of these parameters; those added before are skipped."""
        if world_size() == 1:
            return
        for param in parameters:
            if param.requires_grad and id(param) not in self._handles:
                self._handles[id(param)] = param.register_post_accumulate_grad_hook(_average)

    def remove(self, model: nn.Module) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        model._parameters.pop(ANCHOR, None)
        model.__dict__.pop("_ddp_params_and_buffers_to_ignore", None)


def _average(param: nn.Parameter) -> None:
    from accelerate.state import GradientState

    # Averaging a value that is equal everywhere does not change it. So a gradient may arrive in parts: from several
    # micro-batches, or from a tensor that several sites share.
    if GradientState().sync_gradients and param.grad is not None:
        distributed.all_reduce(param.grad)
        param.grad.div_(world_size())


def broadcast(parameters: Iterable[nn.Parameter]) -> None:
    """Copies the first process's values to every process."""
    if world_size() > 1:
        for param in parameters:
            distributed.broadcast(param.data, 0)
