"""Saves what an arm trained, in PEFT's format where PEFT has one."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from peftprune.adapters.base_check import base_sample
from peftprune.files import write_json
from peftprune.strategy.sites import SiteSet

METADATA_FILE = "peftprune.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TENSORS_FILE = "trained.safetensors"


def save_peft(model: PeftModel, sites: SiteSet, folder: Path, metadata: dict[str, Any]) -> int:
    """Saves a folded adapter with its head in PEFT's own format; `PeftModel.from_pretrained` gives the same function.

    Returns the size of the weights file in bytes. Sites that share an adapter get a copy each, because PEFT has no
    ties; sites without an adapter are left out of `target_modules`. Scaling is in B, so r, lora_alpha, rank_pattern and
    alpha_pattern agree.

    `metadata` is written to `peftprune.json` beside PEFT's files.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False)
    ties = {name: others for name, others in sites.shared_with().items() if others}
    inner = model.get_base_model()
    weights = {n: inner.get_submodule(n).base_layer.weight for n, site in sites.items() if not site.is_dropped}
    write_json(folder / METADATA_FILE, {**metadata, "shared_with": ties, "base_sample": base_sample(weights)})
    return (folder / WEIGHTS_FILE).stat().st_size


def save_baseline(model: nn.Module, folder: Path, metadata: dict[str, Any]) -> int:
    """Saves what a baseline trained: in PEFT's own format if PEFT made the model, else the trained tensors alone.

    The latter are named as in the model's state dict: load the base model, then
    `model.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)`. Returns the size of the weights
    file in bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            # The order of PEFT's sets changes from run to run; prompts have no modules.
            for name in ("target_modules", "feedforward_modules"):
                if isinstance(getattr(config, name, None), set):
                    setattr(config, name, sorted(getattr(config, name)))
        model.save_pretrained(str(folder), save_embedding_layers=False)
        file, form = folder / WEIGHTS_FILE, "PEFT"
    else:
        file, form = folder / TENSORS_FILE, "tensors of the model's state dict; PEFT has no format for this method"
        save_file({n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}, file)
    write_json(folder / METADATA_FILE, {**metadata, "format": form})
    return file.stat().st_size
