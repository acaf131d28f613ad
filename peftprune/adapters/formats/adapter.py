"""An adapter in memory, read from any format."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from peftprune.errors import UsageError

Format = Literal["peft", "native", "loralib"]


@dataclass(frozen=True)
class Factors:
    """One site's update ΔW = scaling · B A, with A (r, d_in) and B (d_out, r).

    The d_in of an `embedding` is the vocabulary size.
    """

    A: Tensor
    B: Tensor
    scaling: float = 1.0
    embedding: bool = False

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def unit_cost(self) -> int:
        """Parameters of one unit of rank: d_in + d_out."""
        return self.A.shape[1] + self.B.shape[0]

    @property
    def scaled_B(self) -> Tensor:
        """scaling · B, in B's dtype."""
        return self.B if self.scaling == 1.0 else (self.B.double() * self.scaling).to(self.B.dtype)

    def key(self) -> str:
        """Returns a digest that is equal for two sites if factors and scaling are equal bit for bit."""
        digest = hashlib.blake2b(repr((self.scaling, self.embedding)).encode(), digest_size=16)
        for tensor in (self.A, self.B):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, with the format and the path that it was read from.

    `sites` maps full module names to factors, in layer order; `others` holds the other trained tensors, such as a
    head's, by their names in the base model's state dict. `config` is PEFT's `adapter_config.json`, constructed for
    loralib, `facts` is the metadata of `peftprune.json`, if any, and `notes` are assumptions in words.
    """

    format: Format
    path: Path
    sites: Mapping[str, Factors]
    others: Mapping[str, Tensor]
    config: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def groups(self) -> list[list[str]]:
        """Returns groups of sites whose factors are equal bit for bit; a site that shares with none is a group too."""
        found: dict[str, list[str]] = {}
        for name, factors in self.sites.items():
            found.setdefault(factors.key(), []).append(name)
        return list(found.values())

    @property
    def head(self) -> dict[str, Tensor]:
        """The other tensors that belong to PEFT's `modules_to_save`."""
        modules = tuple(self.config.get("modules_to_save") or ())
        return {n: t for n, t in self.others.items() if any(within(n, module) for module in modules)}

    @property
    def params(self) -> int:
        """Adapter parameters without sharing: every site counts."""
        return sum(f.rank * f.unit_cost for f in self.sites.values())


def within(tensor: str, module: str) -> bool:
    """Returns whether a tensor belongs to a module that PEFT finds by this name, which may be the end of its path."""
    return f".{module}." in f".{tensor}"


def in_order(sites: Mapping[str, Factors]) -> dict[str, Factors]:
    """Returns the sites in natural order: layer 10 after layer 9."""

    def natural(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]

    return {name: sites[name] for name in sorted(sites, key=natural)}


def refuse_unusual(adapter: Adapter, action: str) -> None:
    """Raises UsageError for an adapter that is more than base + scaling · B A, which an action would change."""
    for field_name, what in _UNUSUAL.items():
        if value := adapter.config.get(field_name):
            problem = f"means {what}, which {action} does not handle"
            raise UsageError.of(field_name, value, problem, "Merge it with PEFT instead")
    start = adapter.config.get("init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "eva", "orthogonal"):
        problem = f"means that loading changes the base model's weights, which {action} does not handle"
        cure = "Save it with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        raise UsageError.of("init_lora_weights", start, problem, cure)


def require_finite(adapter: Adapter) -> None:
    """Refuses an adapter with values that are not finite. Raises UsageError."""
    held = [(name, t) for name, f in adapter.sites.items() for t in (f.A, f.B)]
    for name, tensor in [*held, *adapter.others.items()]:
        if not bool(torch.isfinite(tensor).all()):
            raise UsageError.of("adapter", str(adapter.path), f"is not finite at {name}", "Train it again")


_UNUSUAL = {
    "use_dora": "DoRA's magnitude vectors",
    "lora_bias": "biases of B",
    "use_qalora": "pooled inputs",
    "use_bdlora": "block-diagonal factors",
    "target_parameters": "adapters on parameters instead of layers",
    "layer_replication": "replicated layers",
    "arrow_config": "a router over several adapters",
    "kasa_config": "changed base weights",
    "monteclora_config": "sampled factors",
    "alora_invocation_tokens": "adapters that wait for an invocation",
}
