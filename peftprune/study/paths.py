"""Finds the files that a stored request names, from any working directory and after a move."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILES = ("train_file", "test_file", "validation_file")


def place(folder: Path) -> dict[str, Any]:
    """Returns what `study.json` stores so that its paths stay readable: its folder and the working directory."""
    return {"folder": str(folder.absolute()), "cwd": [str(Path.cwd())]}


def joined(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the place of a request that grew: the calls' working directories, the newest first."""
    return {**now, "cwd": list(dict.fromkeys([*now["cwd"], *stored.get("cwd", ())]))}


def located(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a stored request, the contents of `study.json` in `folder`, whose paths hold from any working directory.

    A path counts from the working directory of the call. Where it does not exist any more, it is looked for as near to
    the study as it was. What is found in neither place stays as it is, such as the name of a model on the hub.
    """
    known = request.get("place", {})

    def find(path: str | None) -> str | None:
        if path is None:
            return None
        originals = [os.path.normpath(Path(cwd) / path) for cwd in known.get("cwd", ())]
        moved = [os.path.normpath(folder.absolute() / os.path.relpath(o, known["folder"])) for o in originals]
        return next(filter(os.path.exists, (*originals, *moved)), path)

    def method(text: str) -> str:
        path, suffix, rest = text.partition(".py:")
        return f"{find(path + '.py')}:{rest}" if suffix else text

    def task(given: dict[str, Any]) -> dict[str, Any]:
        paths = {n: find(given["files"][n]) for n in _FILES if n in given["files"]}
        return given | {"files": given["files"] | paths}

    return {
        **request,
        "model": find(request["model"]),
        "data_dir": find(request["data_dir"]),
        "methods": [m | {"text": method(m["text"])} for m in request["methods"]],
        "tasks": [task(t) for t in request["tasks"]],
    }
