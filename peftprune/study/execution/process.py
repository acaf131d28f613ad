"""The process that trains arms of a planned study: `python -m peftprune.study.execution.process`.

Standard input holds the length of a packed `Work` in eight bytes, then the packed work. Every event goes to standard
output as one line of JSON. The process exits when its standard input closes, so it never outlives its parent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import site
import sys
import sysconfig
import threading
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, TextIO

import cloudpickle

from peftprune.errors import UsageError
from peftprune.strategy.lazy import torch

if TYPE_CHECKING:
    from peftprune.study.execution.work import Work

_LENGTH = 8


def pack(work: Work) -> bytes:
    """Pickles a study's work for another process, with the code of modules that only this process can import.

    Raises UsageError if a strategy holds an object that cannot be pickled.
    """
    by_value = _not_importable()
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(work)
    except Exception as error:  # user-defined objects can raise anything when they are pickled
        methods = ", ".join(dict.fromkeys(arm.spec.label for arm in work.arms))
        problem = f"cannot be sent to another process ({type(error).__name__}: {error})"
        cure = "Keep out of a strategy what cannot be pickled (open files, locks), or train with workers=1"
        raise UsageError.of("methods", methods, problem, cure) from error
    finally:
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)


def unpack(packed: bytes) -> Work:
    """Loads packed work and sets this process's number of threads. Raises RunError as `Work.check_here` does."""
    work: Work = cloudpickle.loads(packed)
    work.check_here()
    torch.set_num_threads(work.threads)
    return work


def send(packed: bytes, pipe: IO[bytes]) -> None:
    pipe.write(len(packed).to_bytes(_LENGTH) + packed)
    pipe.flush()


def _read_input(count: int) -> bytes:
    # Unbuffered: a buffer would read past the work, and an exiting interpreter would wait for the buffer's lock.
    found = b""
    while len(found) < count:
        if not (part := os.read(0, count - len(found))):
            os._exit(1)  # the parent is gone
        found += part
    return found


def python_path() -> dict[str, str]:
    """Returns the environment variables with which another process finds the modules that are not installed."""
    paths = [path for path in _search_path() if not _is_library(Path(path))]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _is_library(path: Path) -> bool:
    """Returns whether an interpreter of this environment searches the path anyway.

    The folders decide, not `sys.prefix`: an environment may be made in the folder of the user's own modules.
    """
    standard = Path(sysconfig.get_path("stdlib"))
    folders = {standard, Path(sysconfig.get_path("platstdlib")), *map(Path, site.getsitepackages())}
    return not folders.isdisjoint({path, *path.parents}) or (path.parent == standard.parent and path.suffix == ".zip")


def _search_path() -> list[str]:
    """Returns `sys.path` without the working directory and the script's folder, which Python itself puts there.

    A file in them, such as the user's own evaluate.py, would take the place of the installed module of its name. They
    stay if PYTHONPATH names them or peftprune is imported from them.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    implicit = {Path.cwd(), *([Path(script).resolve().parent] if script else [])}
    named = {Path(p).absolute() for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}
    paths = [Path(p).absolute() for p in sys.path]
    kept = [p for p in paths if p in named or p.resolve() not in implicit]
    # Another process must find this peftprune before any other one.
    others = (i for i, p in enumerate(kept) if (p / "peftprune" / "__init__.py").is_file())
    kept.insert(next(others, len(kept)), Path(__file__).parents[3])
    return list(dict.fromkeys(map(str, kept)))


def _not_importable() -> list[ModuleType]:
    """Returns the loaded modules that another process does not find. cloudpickle handles `__main__` itself."""
    paths = _search_path()

    def is_found(top: str) -> bool:
        specs = (f.find_spec(top, paths) for f in sys.meta_path if hasattr(f, "find_spec"))
        spec, loaded = next(filter(None, specs), None), getattr(sys.modules.get(top), "__spec__", None)
        return spec is not None and (loaded is None or spec.origin == loaded.origin)

    found = {top: is_found(top) for top in {name.partition(".")[0] for name in sys.modules}}
    modules = [(name, m) for name, m in sys.modules.items() if name != "__main__" and getattr(m, "__file__", None)]
    return [m for name, m in modules if m.__name__ == name and not found[name.partition(".")[0]]]


class EventWriter(logging.Handler):
    """A `Listener` and log handler that writes every event and warning as a line of JSON: its name, then its values."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.WARNING)
        self.stream = stream

    def _write(self, event: str, *values: Any) -> None:
        # Training continues if the reader is gone.
        with contextlib.suppress(OSError):
            self.stream.write(json.dumps([event, *values]) + "\n")
            self.stream.flush()

    started = partialmethod(_write, "started")
    step = partialmethod(_write, "step")
    skipped = partialmethod(_write, "skipped")
    finished = partialmethod(_write, "finished")
    failed = partialmethod(_write, "failed")

    def emit(self, record: logging.LogRecord) -> None:
        self._write("logged", record.getMessage())


def main() -> None:
    packed = _read_input(int.from_bytes(_read_input(_LENGTH)))
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    writer = EventWriter(sys.stdout)
    logger = logging.getLogger("peftprune")
    logger.addHandler(writer)
    logger.propagate = False
    # What libraries print must not mix with the events.
    with contextlib.redirect_stdout(sys.stderr):
        unpack(packed).run(writer)


def _exit_with_parent() -> None:
    while os.read(0, 1):
        pass
    # An arm that is cut off resumes from its last checkpoint.
    os._exit(1)


if __name__ == "__main__":
    main()
