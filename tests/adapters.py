"""Adapters in every state that a method may leave them in, without training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BartForConditionalGeneration, LlamaForCausalLM

from peftprune.adapters import surgery
from peftprune.adapters.merge import fixed_batch, outputs
from peftprune.adapters.save import save_peft
from peftprune.strategy.plan import PruningPlan
from tests.tiny import adapt, stir, tiny_bart, tiny_bert, tiny_llama_gqa

CLASSIFIERS = {"bert": tiny_bert, "bart": tiny_bart, "llama": tiny_llama_gqa}
STATES = ("uniform", "ranks", "shared", "sparse", "dropped", "gated", "all of it")


def finished(architecture: str, state: str, folder: Path) -> tuple[nn.Module, Tensor]:
    """Save a folded adapter in one of `STATES`; returns its base model, unchanged, and what the adapted one says."""
    base = CLASSIFIERS[architecture]()
    everything = state == "all of it"
    gates: dict[str, Any] = {"gate": "rank", "gate_init": 1.0} if everything or state == "gated" else {}
    model, sites = adapt(copy.deepcopy(base), 5, **gates)
    if everything or state == "ranks":
        # Alike in every layer for every other kind, so that some may share.
        kinds = sorted({s.kind for s in sites.values()})
        places = {n: (kinds.index(s.kind), s.layer) for n, s in sites.items()}
        keep = {n: list(range(1 + (k + layer * (k % 2)) % 4)) for n, (k, layer) in places.items()}
        surgery.apply_plan(sites, PruningPlan(keep=keep))
    if everything or state == "shared":
        alike: dict[Any, list[str]] = {}
        for name, site in sites.items():
            alike.setdefault((site.kind, site.rank), []).append(name)
        groups = [group for group in alike.values() if len(group) > 1]
        surgery.apply_plan(sites, PruningPlan(share=groups))
        assert groups
    stir(sites)
    if everything or state == "sparse":
        masks = {n: {"A": torch.rand(s.A.shape) < 0.4} for n, s in sites.items()}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            surgery.apply_plan(sites, PruningPlan(zero=masks))
    if everything or state == "dropped":
        alone = [group[0].name for group in sites.groups() if len(group) == 1]
        surgery.apply_plan(sites, PruningPlan(drop=frozenset(alone[:2])))
    surgery.fold(sites)
    stir_head(model)
    save_peft(model, sites, folder, {"method": state, "label": state, "seed": 0})
    return base, answers(model)


def stir_head(model: nn.Module, seed: int = 1) -> None:
    """Give a trained head values that the base model's does not have."""
    rng = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if "modules_to_save" in name:
            param.data = 0.1 * torch.randn(param.shape, generator=rng)


def generator_model(kind: str) -> nn.Module:
    """An encoder-decoder or a decoder that generates, of the tiny classifiers' sizes."""
    like, cls = {"bart": (tiny_bart, BartForConditionalGeneration), "llama": (tiny_llama_gqa, LlamaForCausalLM)}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return cls(like().config).eval()


def by_peft(base: nn.Module, folder: Path, **options: Any) -> Tensor:
    """Save an adapter that plain PEFT made, with random factors; returns what the adapted model says."""
    config = LoraConfig(**({"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]} | options))
    model = get_peft_model(copy.deepcopy(base), config)
    rng = torch.Generator().manual_seed(2)
    for name, param in model.named_parameters():
        if "lora_" in name:
            param.data = 0.3 * torch.randn(param.shape, generator=rng)
    model.save_pretrained(folder)
    return answers(model)


def answers(model: nn.Module) -> Tensor:
    """Logits on the fixed batch."""
    inner: Any = getattr(model, "get_base_model", lambda: model)()
    return outputs(model, fixed_batch(inner.config))
