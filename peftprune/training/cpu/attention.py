"""Attention with dropout as plain matrix products, which are faster on a CPU than torch's fallback."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peftprune.training.cpu.dropout import MaskStream

NAME = "peftprune_matmul"
_STREAM = "peftprune_masks"
_CHANGING = frozenset({"position_bias", "softcap", "s_aux", "sliding_window", "cache"})
"""Arguments of attention functions that this one does not compute."""


def matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Returns softmax(query keyᵀ · scaling + mask), after dropout, times value: (batch, length, heads, width).

    Everything but training with dropout uses torch's `scaled_dot_product_attention`, as a loaded model does. Query is
    (batch, heads, length, width), key and value are (batch, key heads, key length, width). The mask is True where a key
    is visible, or holds numbers to add; scaling is 1 / √width by default.
    """
    stream: MaskStream | None
    stream, name = getattr(module, _STREAM, (None, ""))
    causal = attention_mask is None and (getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if not dropout or stream is None or causal or any(kwargs.get(k) is not None for k in _CHANGING):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    factor = query.size(-1) ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * factor, key.transpose(2, 3))
    if attention_mask is not None:
        # The lowest number instead of -inf: a padded query may see no key, and must not become NaN.
        lowest = torch.finfo(scores.dtype).min
        hidden = ~attention_mask if attention_mask.dtype == torch.bool else None
        scores = scores + attention_mask if hidden is None else scores.masked_fill(hidden, lowest)
    # In float32 because torch's softmax is twice as slow in bfloat16, the conversions included.
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = weights * stream.mask(f"{name}.weights", weights.shape, dropout, weights.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


def use_matmul_attention(model: nn.Module, stream: MaskStream) -> None:
    """Makes a transformers model on the CPU use `matmul_attention` in place of torch's fused function."""
    base: Any = getattr(model, "get_base_model", lambda: model)()
    config = getattr(base, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa" or not base._can_set_attn_implementation():
        return
    AttentionInterface.register(NAME, matmul_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base.set_attn_implementation(NAME)
    for name, module in model.named_modules():
        if hasattr(module, "is_causal"):
            setattr(module, _STREAM, (stream, name))
