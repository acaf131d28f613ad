"""Finds the sites of a user's PEFT LoRA model, or refuses a model that cannot be pruned."""

from typing import Any

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from torch import nn

from peftprune.errors import UsageError
from peftprune.models.layers import discover_sites
from peftprune.strategy.sites import Site, SiteSet
from peftprune.training.ledger import BaseCost

_KEPT_INITS = (True, False, "gaussian", "orthogonal")
"""Values of `init_lora_weights` that leave the base model's weights as they are."""


def attach(model: Any) -> SiteSet:
    """Returns the sites of a PEFT model with one LoRA adapter, in module order.

    Settings of the adapter's configuration that per-site ranks would contradict are resolved. Raises UsageError if it
    is not a PEFT LoRA model, or has a kind of adapter whose ranks cannot change.
    """
    if not isinstance(model, PeftModel):
        cure = "Wrap it: get_peft_model(model, LoraConfig(r=...))"
        raise UsageError.of("model", type(model).__name__, "is not a PEFT model", cure)
    active = list(model.active_adapters)
    if len(model.peft_config) != 1 or len(active) != 1:
        cure = "Train one adapter: delete_adapter the others"
        raise UsageError.of("model", sorted(model.peft_config), "are its adapters", cure)
    adapter = active[0]
    config = model.peft_config[adapter]
    _check_config(config)
    base = model.get_base_model()
    layers = {n: m for n, m in base.named_modules() if isinstance(m, LoraLayer) and adapter in m.r}
    for name, layer in layers.items():
        _check_layer(name, layer, adapter)
    if not layers:
        raise UsageError.of("model", adapter, "adapts no layer", "Name target_modules in LoraConfig")
    sites = SiteSet({s.name: Site(s, layers[s.name], adapter) for s in discover_sites(base, list(layers))}, config)
    if not any(p.requires_grad for site in sites.values() if not site.is_dropped for p in site._lora_B.parameters()):
        cure = "Load it with is_trainable=True, or set inference_mode=False"
        raise UsageError.of("model", adapter, "is not trainable", cure)
    # Scaling is written as alpha / r for every site by name, which these would contradict.
    config.use_rslora = False
    config.layers_to_transform = config.layers_pattern = None
    return sites


def _check_config(config: Any) -> None:
    if config.peft_type != PeftType.LORA:
        raise UsageError.of("peft_type", str(config.peft_type.value), "is not LORA", "Make the model with LoraConfig")
    if getattr(config, "use_dora", False):
        problem = "trains a magnitude beside A and B, which belongs to no rank"
        raise UsageError.of("use_dora", True, problem, "Set use_dora=False")
    if getattr(config, "lora_bias", False):
        raise UsageError.of("lora_bias", True, "trains a bias, which belongs to no rank", "Set lora_bias=False")
    if getattr(config, "target_parameters", None):
        cure = "Name linear layers: target_modules"
        raise UsageError.of("target_parameters", list(config.target_parameters), "are not layers", cure)
    if (init := config.init_lora_weights) not in _KEPT_INITS:
        cure = "Use True, 'gaussian' or 'orthogonal'"
        raise UsageError.of("init_lora_weights", init, "changes the base model's weights", cure)


def _check_layer(name: str, layer: LoraLayer, adapter: str) -> None:
    if layer.r[adapter] == 0 and adapter not in layer.lora_A:
        return  # `prepare` dropped the adapter here
    if layer.merged:
        raise UsageError.of("model", name, "has its adapter merged", "Call model.unmerge_adapter() first")
    plain = adapter in layer.lora_A and type(layer.lora_A[adapter]) is nn.Linear
    if not plain or adapter in getattr(layer, "lora_variant", {}):
        problem = f"is a {type(layer).__name__} whose ranks cannot change"
        raise UsageError.of("target_modules", name, problem, "Adapt linear layers only")


def base_cost(model: PeftModel) -> BaseCost:
    try:
        return BaseCost.of(model.get_base_model())
    except AttributeError:
        # The configuration has no width of its own (several models in one): attention is left out.
        return BaseCost(sum(p.numel() for p in model.parameters() if p.dim() == 2 and not p.requires_grad), 0)


def base_parameters(model: PeftModel) -> int:
    """Returns the number of frozen parameters, to which a budget's `fraction` refers."""
    # PEFT keeps the head's original weights beside the trained ones.
    return sum(p.numel() for n, p in model.named_parameters() if not p.requires_grad and ".original_module." not in n)


def is_fresh(sites: SiteSet) -> bool:
    """Returns whether every B is zero, so that the adapter does not change the model's function yet."""
    return not any(bool(torch.count_nonzero(site.B)) for site in sites.values() if site.rank)
