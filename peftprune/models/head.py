"""The head of a model: the transformers class that has it, and drawing a task head anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError
from peftprune.strategy.lazy import nn, torch, transformers


def auto_class(name: str | Path, config: Any, writes_text: bool) -> Any:
    """Returns transformers' auto class of models with a sequence-classification head, or with one that writes text.

    Raises UsageError for a model without such a head.
    """
    t = transformers
    two_stacks = getattr(config, "is_encoder_decoder", False)
    # Encoders such as BERT can be built as decoders, which their weights are not made for.
    encoder = writes_text and type(config) in t.MODEL_FOR_MASKED_LM_MAPPING and not two_stacks
    if not writes_text:
        auto, known = t.AutoModelForSequenceClassification, t.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    elif two_stacks:
        auto, known = t.AutoModelForSeq2SeqLM, t.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    else:
        auto, known = t.AutoModelForCausalLM, t.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in known and not encoder:
        return auto
    if writes_text:
        problem, cure = "cannot generate text", "Use an encoder-decoder (bart, t5) or a decoder (llama, qwen2, smollm3)"
    else:
        problem = "has no sequence-classification head"
        cure = "Use a text model, for example one of type bert, roberta, deberta-v2, bart, t5 or llama"
    raise UsageError.of("model", str(name), f"is a {config.model_type} model, which {problem}", cure)


def rescale_output(model: nn.Module, head_modules: Sequence[str], factor: float, shift: float) -> bool:
    """Turns the trained head's one output y into factor · y + shift, in place, by its last linear layer.

    Returns False, and changes nothing, where that layer has no bias to hold the shift.
    """
    found = [
        m
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and m.out_features == 1 and m.weight.requires_grad
        if any(f".{head}." in f".{n}." for head in head_modules)
    ]
    if not found or found[-1].bias is None:
        return False
    with torch.no_grad():
        found[-1].weight.mul_(factor)
        found[-1].bias.mul_(factor).add_(shift)
    return True


def initialise_head(model: nn.Module, head_modules: Sequence[str], generator: torch.Generator) -> None:
    """Draws the task head anew, in place, from `generator` alone.

    Linear weights come from normal(0, `config.initializer_range`, or 0.02 where the configuration has none); biases
    are 0; layer norms get weight 1 and bias 0. The numbers do not depend on the model's device or dtype. Raises
    NotImplementedError, naming it, for a parameter of any other kind.
    """
    std = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
    for head in head_modules:
        for name, module in model.get_submodule(head).named_modules(prefix=head):
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            with torch.no_grad():
                if isinstance(module, nn.Linear):
                    drawn = torch.empty(module.weight.shape, dtype=torch.float32, device=generator.device)
                    module.weight.copy_(drawn.normal_(0.0, std, generator=generator))
                elif isinstance(module, nn.LayerNorm):
                    if weight is not None:  # None without elementwise_affine
                        weight.fill_(1.0)
                elif own := next(module.named_parameters(recurse=False), None):
                    kind = type(module).__name__
                    raise NotImplementedError(f"cannot initialise head parameter {name}.{own[0]} of type {kind}")
                else:
                    continue
                if bias is not None:
                    bias.zero_()
