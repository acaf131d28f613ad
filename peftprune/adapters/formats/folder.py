"""Reads adapter files with clear errors, and checks folders before they are written."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from peftprune.adapters.save import METADATA_FILE
from peftprune.errors import UsageError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file and the text entries of its header.

    Raises UsageError for a pickle, or a file that is damaged or not a safetensors file.
    """
    try:
        with file.open("rb") as f:
            start = f.read(4)
    except OSError as error:
        raise UsageError.of("file", str(file), f"cannot be read ({error.strerror})", "Check the path") from None
    if file.suffix in PICKLES or start.startswith(_PICKLE_STARTS):
        raise pickled(file)
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        problem = f"is truncated, damaged or not a safetensors file ({error})"
        raise UsageError.of("file", str(file), problem, "Copy or download it again") from None


def pickled(file: Path) -> UsageError:
    """Returns the error for a pickle, with a command that converts it."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "tensors = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "save_file({k: v.contiguous().clone() for k, v in tensors.items()}, sys.argv[2])"
    )
    cure = f'Convert it, if you trust its source: python -c "{code}" {file} {file.with_suffix(".safetensors")}'
    return UsageError.of("file", str(file), "is a pickle, which can run code when it is opened", cure)


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises UsageError if there is none."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError.of("file", str(file), f"cannot be read ({error})", "Copy or download it again") from None
    if not isinstance(value, dict):
        raise UsageError.of("file", str(file), "does not hold a JSON object", "Copy or download it again")
    return value


def check_out(out: Path, overwrite: bool, *sources: Path) -> Path:
    """Returns the absolute path of the folder to write.

    Raises UsageError if writing would replace one of the `sources`, or anything but a folder that this package wrote,
    with `overwrite`; nothing was changed.
    """
    target = Path(os.path.expanduser(out)).absolute()
    for source in sources:
        if source.absolute() == target or target in source.absolute().parents:
            raise UsageError.of("out", str(out), "is, or contains, the source", "Name another folder")
    if os.path.exists(target) and not target.is_dir():
        raise UsageError.of("out", str(out), "is a file", "Name a folder")
    if not os.path.exists(target) or not any(target.iterdir()):
        return target
    if not overwrite:
        raise UsageError.of("out", str(out), "is not empty", "Name another folder, or allow it with --overwrite")
    if not (target / METADATA_FILE).is_file():
        problem = f"has no {METADATA_FILE}, so peftprune did not write it and will not overwrite it"
        raise UsageError.of("out", str(out), problem, "Name another folder, or delete this one yourself")
    return target


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
