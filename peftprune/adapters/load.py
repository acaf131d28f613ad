"""Loads a stored adapter onto a base model."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from peftprune.adapters.base_check import check_base
from peftprune.adapters.formats.adapter import Adapter, require_finite, within
from peftprune.adapters.formats.peft import CONFIG_FILE, peft_contents, selects, write_peft
from peftprune.adapters.formats.read import read_adapter
from peftprune.errors import UsageError


def load_adapter(folder: str | Path, model: nn.Module, *, alpha: float | None = None) -> PeftModel:
    """Returns a PEFT model in eval mode: a base model with a stored adapter in PEFT's, the native or loralib's format.

    The function equals the stored adapter's bit for bit. Sites that share factors in a native file share them in
    memory.

    Args:
        folder: the adapter's folder or file.
        model: the base model, which is adapted in place; unchanged after an error, unless PEFT cannot load the adapter.
        alpha: lora_alpha of a loralib file, which does not store it.

    Raises:
        UsageError: for an adapter that cannot be read, or one of another base model.
    """
    adapter = read_adapter(folder, alpha=alpha)
    require_finite(adapter)
    check_fits(adapter, model)
    config, tensors = peft_contents(adapter)
    with tempfile.TemporaryDirectory() as aside, warnings.catch_warnings():
        # transformers warns when PEFT reads a model's activation checkpointing.
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        write_peft(config, tensors, Path(aside))
        try:
            adapted = PeftModel.from_pretrained(model, aside)
        # PEFT checks few fields before it uses them.
        except (AttributeError, ImportError, NotImplementedError, TypeError, ValueError) as error:
            problem = f"cannot be loaded by PEFT ({type(error).__name__}: {error})"
            cure = f"Correct its {CONFIG_FILE}, and load the base model again"
            raise UsageError.of("adapter", str(adapter.path), problem, cure) from error
    if adapter.format == "native":
        _tie(adapted, adapter)
    return adapted.eval()


def check_fits(adapter: Adapter, model: nn.Module) -> None:
    """Raises UsageError for the first tensor that adapter and model do not both have, or have in different shapes."""
    modules = dict(model.named_modules())
    cure = "Load the base model that it was trained on, with as many labels"
    for name, factors in adapter.sites.items():
        if name not in modules:
            raise UsageError.of("adapter", str(adapter.path), f"adapts {name}, which the model does not have", cure)
        found, own = _shape(modules[name]), (factors.B.shape[0], factors.A.shape[1])
        if found != own:
            shape = " × ".join(map(str, found)) or "no weight"
            problem = f"adapts {name} as {own[0]} × {own[1]}, where the model has {shape}"
            raise UsageError.of("adapter", str(adapter.path), problem, cure)
    state = model.state_dict()
    for name, tensor in adapter.others.items():
        if name not in state and name in adapter.head:
            raise UsageError.of("adapter", str(adapter.path), f"holds {name}, which the model does not have", cure)
        if name in state and state[name].shape != tensor.shape:
            problem = f"holds {name} as {tuple(tensor.shape)}, where the model has {tuple(state[name].shape)}"
            raise UsageError.of("adapter", str(adapter.path), problem, cure)
    for module in adapter.config.get("modules_to_save") or ():
        if (lacking := next((n for n in state if within(n, module) and n not in adapter.others), None)) is not None:
            problem = f"has no tensor for {lacking}, which modules_to_save names"
            raise UsageError.of("adapter", str(adapter.path), problem, "Copy or download it again")
    _check_none_lacking(adapter, modules)
    sample = adapter.facts.get("base_sample")
    if isinstance(sample, dict) and sample.keys() <= modules.keys():
        check_base(sample, model, adapter.path)


def _shape(module: nn.Module) -> tuple[int, ...]:
    """Returns (d_out, d_in). Quantised layers store it beside their packed weights; transformers' Conv1D transposes."""
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings
    features: Any = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if None not in features:
        return int(features[0]), int(features[1])
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if weight is not None else ()
    return shape[::-1] if type(module).__name__ == "Conv1D" else shape


def _check_none_lacking(adapter: Adapter, modules: dict[str, nn.Module]) -> None:
    """Refuses layers that PEFT would adapt by the configuration without stored tensors: they would be random."""
    if adapter.format == "loralib" or adapter.config.get("target_modules") in (None, "all-linear"):
        return
    for name, module in modules.items():
        if name not in adapter.sites and len(_shape(module)) == 2 and selects(adapter.config, name):
            problem = f"has no factors for {name}, which its target_modules name"
            raise UsageError.of("adapter", str(adapter.path), problem, "Copy or download it again")


def _tie(model: PeftModel, adapter: Adapter) -> None:
    inner, name = model.get_base_model(), model.active_adapter
    for first, *others in adapter.groups():
        if adapter.sites[first].embedding:
            continue
        source: Any = inner.get_submodule(first)
        for other in others:
            layer: Any = inner.get_submodule(other)
            layer.lora_A[name].weight = source.lora_A[name].weight
            layer.lora_B[name].weight = source.lora_B[name].weight
