"""Running out of room, or of the right to write: seen before training where possible, and said in words."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from torch import nn

from peftprune.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_CUT_OFF = ("PytorchStreamWriter", "inline_container", "iostream error")
"""In what torch says when a file cannot be written to its end; it does not say why."""
_LATER = "the same command goes on from the last checkpoint; everything finished is kept"
_PER_WEIGHT = 12
"""Bytes of a checkpoint for each trained number: itself and the two moments of AdamW, in float32."""
_BESIDE = 100_000
"""Bytes of what lies beside the weights in a checkpoint, and in a finished arm: states of the run, and records."""


def storage_error(error: BaseException | None, folder: Path) -> RunError | None:
    """What to tell a user about an error that came of a full disk or a folder that cannot be written; else None.

    Args:
        error: what was raised; what it came from is looked through too.
        folder: where was written.
    """
    while error is not None:
        # Libraries in C++ and Rust raise errors of their own, which say no more than the text.
        code, text = getattr(error, "errno", None), str(error)
        if code in _FULL or "os error 28" in text:
            return RunError(f"{folder}: no space is left on the disk. Free some, and {_LATER}")
        if any(words in text for words in _CUT_OFF):
            free = f"{_free(folder) / 1e6:,.1f} MB are free now"
            return RunError(
                f"{folder}: a file could not be written to its end. Is the disk full ({free})? Free some, and {_LATER}"
            )
        if code in _REFUSED:
            return RunError(f"{folder}: cannot be written ({text}). Make it writable, and {_LATER}")
        error = error.__cause__ or error.__context__
    return None


def require_space(folder: Path, model: nn.Module, checkpoints: int) -> None:
    """Refuse to train where what is to be stored plainly does not fit.

    Args:
        folder: the arm's, which exists.
        model: with the weights to be trained.
        checkpoints: how many are there at the same time.

    Raises:
        RunError: naming what is free and what is needed.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = _BESIDE + 4 * trained + checkpoints * (_BESIDE + _PER_WEIGHT * trained)
    free = _free(folder)
    if free < needed:
        raise RunError(
            f"{folder}: {free / 1e6:,.1f} MB are free on the disk, and the arm needs about {needed / 1e6:,.1f} MB. "
            f"Free some, lower checkpoints (0 for none), or name another output_dir; everything finished is kept"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
