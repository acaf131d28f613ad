"""Checks by a few weights that a base model is the one that an adapter was trained on."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftprune.errors import UsageError

_VALUES = 4096


def base_sample(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns checksums of up to three adapted layers' base weights: the first, the middle and the last by name.

    Values are sampled at equal distances and rounded to bfloat16, so that a base in either dtype has equal checksums.
    """
    names = sorted(weights)
    picked = dict.fromkeys(names[i] for i in (0, len(names) // 2, -1)) if names else {}
    return {name: _checksum(weights[name]) for name in picked}


def _checksum(weight: Tensor) -> str:
    flat = weight.detach().reshape(-1)
    values = flat[:: max(1, flat.numel() // _VALUES)].to(torch.bfloat16).cpu().contiguous()
    return hashlib.sha256(values.view(torch.uint8).numpy().data).hexdigest()[:16]


def check_base(sample: Mapping[str, str], model: nn.Module, adapter: object) -> None:
    """Refuses a model whose weights differ from a `base_sample`, unless they are neither float32 nor bfloat16."""
    for name, expected in sample.items():
        weight: Any = getattr(model.get_submodule(name), "weight", None)
        known = weight is not None and weight.dtype in (torch.float32, torch.bfloat16)
        if known and _checksum(weight) != expected:
            problem = f"was trained on another base model: the weights of {name} differ"
            raise UsageError.of("adapter", str(adapter), problem, "Load the base model that it was trained on")
