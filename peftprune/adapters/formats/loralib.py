"""loralib's format: a state dict with `<site>.lora_A` and `<site>.lora_B`, and the head's tensors under their names.

It stores neither lora_alpha nor the name of the base model.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from peftprune.adapters.formats.adapter import Adapter, Factors, in_order
from peftprune.errors import UsageError


def is_loralib(tensors: dict[str, Tensor]) -> bool:
    """Returns whether any tensor has loralib's name of a factor."""
    return any(name.endswith((".lora_A", ".lora_B")) for name in tensors)


def parse_loralib(path: Path, tensors: dict[str, Tensor], alpha: float | None) -> Adapter:
    """Returns the adapter from the file's contents, with a configuration as PEFT would write it.

    `alpha` is the lora_alpha of its training; None assumes a scaling of 1, which is noted. Raises UsageError for a
    factor without its partner, factors that do not fit (MergedLinear, convolutions), or trained tensors inside adapted
    layers.
    """
    sites: dict[str, Factors] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        site, _, part = name.rpartition(".")
        if part not in ("lora_A", "lora_B"):
            others[name] = tensor
            continue
        a, b = tensors.get(f"{site}.lora_A"), tensors.get(f"{site}.lora_B")
        if a is None or b is None:
            lacking = "lora_A" if a is None else "lora_B"
            raise UsageError.of("file", str(path), f"has no {lacking} for {site}", "Copy or download it again")
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            problem = f"has A {tuple(a.shape)} and B {tuple(b.shape)} at {site}, which is not a plain linear layer"
            cure = "Convolutions and loralib's MergedLinear are not supported; split them into one pair a layer"
            raise UsageError.of("file", str(path), problem, cure)
        sites[site] = Factors(a, b, 1.0 if alpha is None else alpha / a.shape[0])
    head = _modules(path, list(sites), list(others))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if {*head} & {"classifier", "score", "classification_head"} else None,
        "base_model_name_or_path": None,
        "modules_to_save": head or None,
        "inference_mode": True,
        "bias": "none",
    }
    note = "loralib does not store lora_alpha: a scaling of 1 is assumed. Give alpha if it was another"
    return Adapter("loralib", path, in_order(sites), others, config, notes=(note,) if alpha is None else ())


def _modules(path: Path, sites: list[str], tensors: list[str]) -> list[str]:
    """Returns the outermost modules that hold these tensors and no site."""
    inside = {".".join(site.split(".")[:n]) for site in sites for n in range(1, site.count(".") + 2)}
    found: dict[str, None] = {}
    for tensor in tensors:
        parts = tensor.split(".")
        module = next((".".join(parts[:n]) for n in range(1, len(parts)) if ".".join(parts[:n]) not in inside), None)
        if module is None:
            problem = f"holds {tensor}, a trained tensor of an adapted layer"
            raise UsageError.of("file", str(path), problem, "Leave biases of adapted layers out of the file")
        found[module] = None
    return list(found)
