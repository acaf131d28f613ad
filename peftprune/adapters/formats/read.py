import os
import re
from pathlib import Path

from peftprune.adapters.formats.adapter import Adapter
from peftprune.adapters.formats.folder import PICKLES, pickled, read_tensors
from peftprune.adapters.formats.loralib import is_loralib, parse_loralib
from peftprune.adapters.formats.native import HEADER, parse_native
from peftprune.adapters.formats.peft import CONFIG_FILE, read_peft
from peftprune.adapters.save import TENSORS_FILE, WEIGHTS_FILE
from peftprune.errors import UsageError


def read_adapter(path: str | Path, *, alpha: float | None = None) -> Adapter:
    """Reads a LoRA adapter in PEFT's, the native or loralib's format, from a folder or a safetensors file.

    `alpha` is the lora_alpha of a loralib file, which does not store it. Raises UsageError for a missing or damaged
    file, a pickle, another kind of adapter, or contents that disagree.
    """
    given = Path(os.path.expanduser(path))
    if alpha is not None and not 0 < alpha < float("inf"):
        raise UsageError.of("alpha", alpha, "is not positive and finite", "Give 16, for example")
    if not os.path.exists(given):
        raise UsageError.of("adapter", str(path), "does not exist", "Name a folder or a safetensors file")
    if given.is_dir() and (given / CONFIG_FILE).exists():
        return _peft(given, alpha)
    file = _only_file(given) if given.is_dir() else given
    if file.name in (CONFIG_FILE, WEIGHTS_FILE) and (file.parent / CONFIG_FILE).exists():
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
    return read_peft(folder)


def _no_alpha(alpha: float | None) -> None:
    if alpha is not None:
        raise UsageError.of("alpha", alpha, "is given for an adapter that stores its own", "Leave alpha out")


def _only_file(folder: Path) -> Path:
    """Returns the safetensors file of a folder without PEFT's configuration, or says what the folder is."""
    names = sorted(file.name for file in folder.iterdir())
    # An arm of a study has its adapter in a folder of its own, and so have a Trainer's checkpoints and named adapters.
    below = sorted(file.parent for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}*/{CONFIG_FILE}"))
    full = "config.json" in names and any(re.fullmatch(r"(pytorch_)?model\b.*\.(safetensors|bin)", n) for n in names)
    files = [name for name in names if name.endswith(".safetensors")]
    problem, cure = "holds no adapter", "Name a folder with an adapter"
    if not names:
        problem = "is empty"
    elif len(files) == 1 and not full:
        return folder / files[0]
    elif below:
        problem = "is a study's folder" if "study.json" in names else "holds no adapter itself"
        cure = f"Name the folder of an adapter in it, such as {below[0]}"
    elif "study.json" in names:
        problem = "is a study's folder without an adapter"
    elif full:
        problem = "holds a full model, which is not an adapter"
    elif files:
        problem, cure = f"holds several files ({', '.join(files)})", "Name one of them"
    elif pickles := [name for name in names if name.endswith(PICKLES) and name != "training_args.bin"]:
        raise pickled(folder / pickles[0])
    raise UsageError.of("adapter", str(folder), problem, cure)
