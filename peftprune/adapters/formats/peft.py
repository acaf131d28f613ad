"""PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Adapters are written with every scaling in B, so that r = lora_alpha = the largest rank and `rank_pattern` equals
`alpha_pattern`; sites are named in full. An unchanged adapter of PEFT's keeps its own configuration.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor

from peftprune.adapters.formats.adapter import Adapter, Factors, in_order, refuse_unusual
from peftprune.adapters.formats.folder import pickled, read_json, read_tensors
from peftprune.adapters.save import METADATA_FILE, WEIGHTS_FILE
from peftprune.adapters.surgery import alpha, anchored
from peftprune.errors import UsageError

CONFIG_FILE = "adapter_config.json"
PICKLE_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."
_COPIES = re.compile(r"\.(modules_to_save|original_module)\.")
_ENDINGS = {
    "lora_A.weight": ("A", False),
    "lora_B.weight": ("B", False),
    "lora_embedding_A": ("A", True),
    "lora_embedding_B": ("B", True),
}


def read_peft(folder: Path) -> Adapter:
    """Reads a folder that PEFT or `export` wrote.

    Raises UsageError for damaged files, an adapter that is not LoRA, or tensors and configuration that disagree.
    """
    config = read_json(folder / CONFIG_FILE)
    if (kind := config.get("peft_type")) != "LORA":
        cure = "Only LoRA has a pair of factors for each site; use others with PEFT itself"
        raise UsageError.of("peft_type", kind, f"of {folder} is not LORA", cure)
    if not (folder / WEIGHTS_FILE).exists():
        if (pickle := folder / PICKLE_FILE).exists():
            raise pickled(pickle)
        raise UsageError.of("adapter", str(folder), f"has no {WEIGHTS_FILE}", "Copy or download it again")
    tensors, _ = read_tensors(folder / WEIGHTS_FILE)
    facts = read_json(folder / METADATA_FILE) if (folder / METADATA_FILE).is_file() else {}
    return parse_peft(folder, config, tensors, facts)


def parse_peft(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> Adapter:
    """Returns the adapter from the contents of PEFT's two files. Raises UsageError if they are damaged or disagree."""
    _check_config(path, config)
    pairs: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    embeddings = set()
    names = {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}
    for name, tensor in names.items():
        if (ending := next((e for e in _ENDINGS if name.endswith(f".{e}")), None)) is None:
            # With bias="all" PEFT also saves the biases of both copies of a saved module, and ignores them on loading.
            own = _COPIES.sub(".", name)
            if own == name or own not in names:
                others[name] = tensor
            continue
        site = name.removesuffix(f".{ending}")
        part, embedding = _ENDINGS[ending]
        pairs.setdefault(site, {})[part] = tensor
        if embedding:
            embeddings.add(site)
    if not pairs:
        raise UsageError.of("adapter", str(path), "holds no LoRA factors", "Copy or download it again")
    sites = {site: _factors(path, config, site, pair, site in embeddings) for site, pair in pairs.items()}
    adapter = Adapter("peft", path, in_order(sites), others, dict(config), dict(facts))
    _check_complete(adapter)
    return adapter


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses values that PEFT does not write, in the fields that this package or PEFT's loading depends on."""
    for field, (right, kind) in _FIELDS.items():
        value = config.get(field)
        if not right(value) and not (field == "target_modules" and config.get("target_parameters")):
            raise UsageError.of(field, value, f"in {CONFIG_FILE} of {path} is not {kind}", "Correct the configuration")


def _rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _expression(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_expression, value))


def _layers(value: Any) -> bool:
    return value is None or all(type(n) is int for n in (value if isinstance(value, list) else [value]))


def _pattern(value: Any, right: Callable[[Any], bool]) -> bool:
    return value is None or (isinstance(value, dict) and _names([*value]) and all(map(right, value.values())))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_rank, "a whole number of at least 1"),
    "lora_alpha": (_number, "a finite number"),
    "rank_pattern": (lambda v: _pattern(v, _rank), "an object of expressions and whole numbers of at least 1"),
    "alpha_pattern": (lambda v: _pattern(v, _number), "an object of expressions and finite numbers"),
    "use_rslora": (lambda v: v is None or isinstance(v, bool), "true or false"),
    "target_modules": (lambda v: _expression(v) or (_names(v) and v), "an expression or a list of names"),
    "exclude_modules": (lambda v: v is None or _expression(v) or _names(v), "an expression or a list of names"),
    "modules_to_save": (lambda v: v is None or _names(v), "a list of names"),
    "layers_to_transform": (_layers, "a whole number or a list of them"),
    "layers_pattern": (lambda v: v is None or _expression(v) or _names(v), "an expression or a list of names"),
    "bias": (lambda v: v in (None, "none", "all", "lora_only"), "none, all or lora_only"),
}
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def _factors(path: Path, config: Mapping[str, Any], site: str, pair: dict[str, Tensor], embedding: bool) -> Factors:
    if (lacking := next((part for part in ("A", "B") if part not in pair), None)) is not None:
        raise UsageError.of("adapter", str(path), f"has no lora_{lacking} for {site}", "Copy or download it again")
    A, B = pair["A"], pair["B"]
    if not {A.dtype, B.dtype} <= _DTYPES:
        problem = f"has factors in {A.dtype} and {B.dtype} at {site}"
        raise UsageError.of("adapter", str(path), problem, "Save them as float16, bfloat16, float32 or float64")
    if A.dim() != 2 or B.dim() != 2:
        problem = f"has factors with {A.dim()} and {B.dim()} dimensions at {site}, which is not a linear layer"
        raise UsageError.of("adapter", str(path), problem, "Convolutions are not supported")
    rank, alpha = _patterned(config, "rank_pattern", "r", site), _patterned(config, "alpha_pattern", "lora_alpha", site)
    if A.shape[0] != B.shape[1] or A.shape[0] != rank:
        problem = f"has A {tuple(A.shape)} and B {tuple(B.shape)} at {site}, where {CONFIG_FILE} says rank {rank}"
        raise UsageError.of("adapter", str(path), problem, "Configuration and weights are of different adapters")
    return Factors(A, B, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), embedding)


def _patterned(config: Mapping[str, Any], pattern: str, default: str, site: str) -> Any:
    found = config.get(pattern) or {}
    return found.get(get_pattern_key(list(found), site), config.get(default))


def _check_complete(adapter: Adapter) -> None:
    """Checks that every module that the configuration names has tensors."""
    targets = adapter.config.get("target_modules")
    for target in targets if isinstance(targets, list) else ():
        # A name without its path may belong to another architecture, or to layers that the configuration leaves out.
        held = any(site == target or site.endswith(f".{target}") for site in adapter.sites)
        if "." in target and not held and selects(adapter.config, target):
            problem = f"has no tensors for the target module {target}"
            raise UsageError.of("adapter", str(adapter.path), problem, "Copy or download it again")
    # PEFT lists several usual names of heads, of which a model has one.
    if (modules := adapter.config.get("modules_to_save") or ()) and not adapter.head:
        problem = f"has no tensors for {' or '.join(modules)}, which modules_to_save names"
        raise UsageError.of("adapter", str(adapter.path), problem, "Copy or download it again")


def selects(config: Mapping[str, Any], name: str) -> bool:
    """Returns whether PEFT adapts a module of this name by the configuration."""
    fields = (
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
        "target_parameters",
    )  # fmt: skip
    # PEFT returns an object that is false for excluded modules.
    return bool(check_target_module_exists(SimpleNamespace(**{field: config.get(field) for field in fields}), name))


def peft_contents(
    adapter: Adapter, *, uniform: bool = False, head: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the contents of PEFT's two files: the configuration, and the tensors by PEFT's names.

    `uniform` pads every site with zeros to the largest rank, for engines that ignore `rank_pattern`; the function does
    not change. `head=False` leaves out the tensors and names of `modules_to_save`. Raises UsageError for an adapter
    that cannot be padded.
    """
    config, others, sites = dict(adapter.config), dict(adapter.others), dict(adapter.sites)
    if not head:
        others = {n: t for n, t in others.items() if n not in adapter.head}
        config["modules_to_save"] = None
        if config.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
            # With this task type PEFT expects a head's tensors whatever modules_to_save lists.
            config["task_type"] = None
    if uniform:
        refuse_unusual(adapter, "padding")
        rank = max(f.rank for f in sites.values())
        sites = {name: _padded(f, rank) for name, f in sites.items()}
    if uniform or adapter.format == "loralib":
        config |= ranked_config({name: f.rank for name, f in sites.items()})
        sites = {name: Factors(f.A, f.scaled_B, 1.0, f.embedding) for name, f in sites.items()}
    tensors = {f"{_PREFIX}{name}": t for name, t in others.items()}
    for name, f in sites.items():
        a, b = ("lora_embedding_A", "lora_embedding_B") if f.embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{_PREFIX}{name}.{a}": f.A, f"{_PREFIX}{name}.{b}": f.B}
    # safetensors refuses views and tensors that share memory.
    return config, {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def _padded(factors: Factors, rank: int) -> Factors:
    extra = rank - factors.rank
    A = torch.cat([factors.A, factors.A.new_zeros(extra, factors.A.shape[1])])
    B = torch.cat([factors.B, factors.B.new_zeros(factors.B.shape[0], extra)], dim=1)
    return Factors(A, B, factors.scaling, factors.embedding)


def ranked_config(ranks: Mapping[str, int], scaling: float = 1.0) -> dict[str, Any]:
    """Returns the fields of PEFT's configuration that give these sites their ranks, at one scaling for all."""
    largest = max(ranks.values())
    smaller = {anchored(name): rank for name, rank in ranks.items() if rank != largest}
    return {
        "r": largest,
        "lora_alpha": alpha(scaling, largest),
        "rank_pattern": smaller,
        "alpha_pattern": {name: alpha(scaling, rank) for name, rank in smaller.items()},
        "use_rslora": False,
        "target_modules": sorted(ranks),
        # Sites are named in full; no other field may select among them.
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def write_peft(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> int:
    """Writes both files and returns the size of the weights file in bytes."""
    (folder / CONFIG_FILE).write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n")
    save_file(dict(tensors), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return (folder / WEIGHTS_FILE).stat().st_size
