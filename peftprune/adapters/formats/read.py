"""Detects the format of an adapter and reads it."""

from __future__ import annotations

import os
from pathlib import Path

from peftprune.adapters.formats.adapter import Adapter
from peftprune.adapters.formats.folder import PICKLES, pickled, read_tensors
from peftprune.adapters.formats.loralib import is_loralib, parse_loralib
from peftprune.adapters.formats.native import HEADER, parse_native
from peftprune.adapters.formats.peft import CONFIG_FILE, WEIGHTS_FILE, read_peft
from peftprune.adapters.save import TENSORS_FILE
from peftprune.errors import UsageError


def read_adapter(path: str | Path, *, alpha: float | None = None) -> Adapter:
    """Reads a LoRA adapter in PEFT's, the native or loralib's format.

    Args:
        path: a folder or a safetensors file.
        alpha: lora_alpha of a loralib file, which does not store it.

    Raises:
        UsageError: for a missing or damaged file, a pickle, another kind of adapter, or contents that disagree.
    """
    given = Path(os.path.expanduser(path))
    if alpha is not None and not 0 < alpha < float("inf"):
        raise UsageError.of("alpha", alpha, "is not positive and finite", "Give 16, for example")
    if not os.path.exists(given):
        raise UsageError.of("adapter", str(path), "does not exist", "Name a folder or a safetensors file")
    if given.is_dir() and (given / CONFIG_FILE).exists():
        return _peft(given, alpha)
    file = _only_file(given) if given.is_dir() else given
    if file.name == WEIGHTS_FILE and (file.parent / CONFIG_FILE).exists():
        return _peft(file.parent, alpha)
    tensors, metadata = read_tensors(file)
    if HEADER in metadata:
        _no_alpha(alpha)
        return parse_native(file, tensors, metadata)
    if is_loralib(tensors):
        return parse_loralib(file, tensors, alpha)
    problem = "holds no LoRA factors"
    if file.name == TENSORS_FILE:
        problem += ": it holds the tensors of a method without adapters"
    elif any(".lora_A." in name for name in tensors):
        problem = f"is of PEFT's format, but {CONFIG_FILE} is not beside it"
    raise UsageError.of("adapter", str(path), problem, "Name a LoRA adapter of PEFT, peftprune or loralib")


def _peft(folder: Path, alpha: float | None) -> Adapter:
    _no_alpha(alpha)
    if not (folder / WEIGHTS_FILE).exists():
        _refuse_pickles(folder)
        raise UsageError.of("adapter", str(folder), f"has no {WEIGHTS_FILE}", "Copy or download it again")
    return read_peft(folder)


def _refuse_pickles(folder: Path) -> None:
    for file in sorted(f for f in folder.iterdir() if f.suffix in PICKLES):
        raise pickled(file)


def _no_alpha(alpha: float | None) -> None:
    if alpha is not None:
        raise UsageError.of("alpha", alpha, "is given for an adapter that stores its own", "Leave alpha out")


def _only_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(f.name for f in files)
        raise UsageError.of("adapter", str(folder), f"holds several files ({names})", "Name one of them")
    _refuse_pickles(folder)
    hint = f"Name {folder / 'adapter'}" if (folder / "adapter").is_dir() else "Name a folder with an adapter"
    raise UsageError.of("adapter", str(folder), "holds no adapter", hint)
