"""Explains errors from a full or read-only disk, and checks free space before training."""

import errno
import shutil
from pathlib import Path

from torch import nn

from peftprune.errors import RunError
from peftprune.training.checkpoints import KEPT_CHECKPOINTS

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_CUT_OFF = ("PytorchStreamWriter", "inline_container", "iostream error")
"""Parts of torch's messages about a file that cannot be written to its end; they do not name the reason."""
_LATER = "the same command resumes from the last checkpoint; everything finished is kept"
_PER_WEIGHT = 12
"""Bytes of a checkpoint per trained parameter: the value and AdamW's two moments, in float32."""
_OTHER_FILES = 100_000
"""Bytes of a checkpoint's, or a finished arm's, files other than weights."""


def storage_error(error: BaseException | None, folder: Path) -> RunError | None:
    """Returns the error to show a user where a disk is full or a folder is not writable; None for other errors.

    The causes of the error are examined too; `folder` is where it was written to.
    """
    while error is not None:
        # Errors raised by C++ and Rust libraries carry their reason in the text alone.
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


def needed_bytes(trained: int, checkpoints: int) -> int:
    """Returns the bytes of an arm's files in training; with no `checkpoints`, those that are left at its end."""
    # An old checkpoint is removed after a new one is complete.
    held = min(checkpoints, KEPT_CHECKPOINTS + 1)
    return _OTHER_FILES + 4 * trained + held * (_OTHER_FILES + _PER_WEIGHT * trained)


def require_space(folder: Path, model: nn.Module, checkpoints: int) -> None:
    """Raises RunError, which names the space, if an arm's files with its `checkpoints` do not fit on the disk."""
    needed = needed_bytes(sum(p.numel() for p in model.parameters() if p.requires_grad), checkpoints)
    if (free := _free(folder)) < needed:
        raise RunError(
            f"{folder}: {free / 1e6:,.1f} MB are free on the disk, and the arm needs about {needed / 1e6:,.1f} MB. "
            f"Free some, lower checkpoints (0 for none), or name another output_dir; everything finished is kept"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
