"""Hold weights and inputs in the precision in which autocast multiplies them."""

from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def keep_frozen_weights_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the frozen weights and biases of linear layers once, and the input of attention layers once per layer.

    The outputs equal those of autocast to `dtype` bit for bit, which casts all of this at every use; only the gradient
    of an attention layer's input is summed in `dtype`. LoRA layers no longer cast their input to float32, which
    autocast would cast back. The layers get tensors of their own: a backbone that other arms share stays as it is. The
    model can then only be called under autocast.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            for name, param in module.named_parameters(recurse=False):
                if not param.requires_grad and param.is_floating_point():
                    setattr(module, name, nn.Parameter(param.detach().to(dtype), requires_grad=False))
        elif isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False
        if hasattr(module, "is_causal"):
            module.register_forward_pre_hook(partial(_narrow, dtype), with_kwargs=True)


def _narrow(dtype: torch.dtype, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if args:
        return (args[0].to(dtype), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].to(dtype)}
