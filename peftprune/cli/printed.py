"""What `compare` printed of a finished study, so that the same command prints it again without model, data and torch.

It holds while nothing has changed that it follows from: options, terminal, machine, versions, and the files of the
package, the model, the data and the study. Files are compared by size and times, as git does.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftprune.cli.terminal import console
from peftprune.files import write_json
from peftprune.study.stored_study import StoredStudy
from peftprune.study.versions import package_versions

_FILE = ".printed.json"
_PACKAGE = Path(__file__).parents[1]
_DEVICES = (("/dev", "nvidia*"), ("/dev", "nvidia-caps/*"), ("/dev", "kfd"), ("/proc/driver/nvidia/gpus", "*/*"))
Place = tuple[str | Path, str]
"""A folder, and the pattern of the files in it; or a file, and no pattern."""


class Printed:
    """The answer to the command with these options, of a study in `folder`, or else in any folder of runs/."""

    def __init__(self, options: Mapping[str, Any], config: Path | None, folder: Path | None) -> None:
        self._began, self._sources = time.time(), list[Place]([(_PACKAGE, "**/*")])
        if config is not None:
            self._sources.append((config, ""))
            if folder is None:
                import yaml

                with suppress(Exception):  # whoever reads the file in earnest says what is wrong with it
                    folder = Path(yaml.safe_load(config.read_text("utf-8"))["output_dir"])
        self._folders = Path("runs").glob("*") if folder is None else [folder]
        named = {n: v for n, v in os.environ.items() if n == "PEFTPRUNE_DATA" or n.endswith("VISIBLE_DEVICES")}
        devices = [str(p) for root, pattern in _DEVICES for p in sorted(Path(root).glob(pattern))]
        about = [options, os.getcwd(), named, console().width, sys.stdout.isatty(), platform.node(), devices]
        text = json.dumps([*about, package_versions()], sort_keys=True, default=str)
        self._key = hashlib.sha256(text.encode()).hexdigest()

    def again(self) -> dict[str, Any] | None:
        """Prints what the command printed before and returns its values; None where that may not hold any more."""
        for folder in self._folders:
            with suppress(OSError, ValueError, TypeError, KeyError):
                found = json.loads((folder / _FILE).read_text("utf-8"))
                if found["key"] == self._key and _stamp(found["places"])[0] == found["stamp"]:
                    sys.stdout.write(found["text"])
                    return dict(found["values"])
        return None

    def keep(self, study: StoredStudy, text: str, values: Mapping[str, Any]) -> None:
        """Stores what was printed, if every arm is finished and all that it follows from is in files.

        Raises OSError where it cannot be written, and UsageError for a damaged arm.
        """
        from peftprune.models.find import find_weights

        tasks, model = study.request["tasks"], find_weights(study.request["model"]).folder
        origins = [task["source"].partition(" ") for task in tasks]
        local = model is not None and {kind for kind, _, _ in origins} <= {"generated,", "folder", "files"}
        # An arm may also follow from the code of a user's own method, or from another study's ranks.
        elsewhere = any({n for n, v in arm.config().items() if v} & {"source", "allocation"} for _, arm in study.arms())
        if not local or elsewhere or any(arm.result() is None for _, arm in study.arms()):
            return
        sources = [*self._sources, (str(model), "*"), *((place, "*") for kind, _, place in origins if kind == "folder")]
        sources += [(v, "") for task in tasks for n, v in task["files"].items() if n.endswith("_file")]
        own = {"study.json": "", "ranks.png": "", "arms": "**/*", "tuning": "**/*"}
        places = [(str(root), p) for root, p in [*sources, *((study.path / n, p) for n, p in own.items())]]
        # A source that has changed since the command began may not be what it read.
        if _stamp(sources)[1] < self._began:
            found = {"key": self._key, "places": places, "stamp": _stamp(places)[0], "text": text, "values": values}
            write_json(study.path / _FILE, found)


def _stamp(places: Iterable[Place]) -> tuple[str, float]:
    """Returns a digest of the names, sizes and times of files, hidden ones left out, and the latest change."""
    digest, latest = hashlib.sha256(), 0.0
    for root, pattern in places:
        for path in sorted(Path(root).glob(pattern)) if pattern else [Path(root)]:
            inner = path.relative_to(root).parts
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inner):
                stat = path.stat()
                digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode())
                latest = max(latest, stat.st_ctime)
    return digest.hexdigest(), latest
