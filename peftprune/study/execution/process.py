"""A process that trains arms of a study which another process planned: `python -m peftprune.study.execution.process`.

Standard input holds a packed `Work`, behind its length in eight bytes. Every event is one JSON document a line on
standard output. The worker ends when its standard input does, so that it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from io import RawIOBase
from typing import IO, TYPE_CHECKING, Any, TextIO

from peftprune.errors import UsageError

if TYPE_CHECKING:
    from peftprune.study.execution.work import Work

_LENGTH = 8


def pack(work: Work) -> bytes:
    """Pickle a study's work for another process, with the code of strategies that only this process has.

    Raises:
        UsageError: for strategies that hold what cannot be pickled.
    """
    import cloudpickle

    classes = {c for arm in work.arms for c in arm.spec.cls.__mro__}
    own = [sys.modules[name] for name in {c.__module__ for c in classes} if _only_here(name)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(work)
    except Exception as error:  # whatever a foreign object raises when it is asked for its state
        methods = ", ".join(dict.fromkeys(arm.spec.label for arm in work.arms))
        problem = f"cannot be sent to another process ({type(error).__name__}: {error})"
        cure = "Keep out of a strategy what cannot be pickled (open files, locks), or train with workers=1"
        raise UsageError.of("methods", methods, problem, cure) from error
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def unpack(packed: bytes) -> Work:
    """The work that `pack` packed, in a process that is made ready for it.

    Raises:
        RunError: where this machine is not like the one that the study was planned on.
    """
    import cloudpickle
    import torch

    work: Work = cloudpickle.loads(packed)
    work.check_here()
    torch.set_num_threads(work.threads)
    return work


def send(packed: bytes, pipe: IO[bytes]) -> None:
    """Write what a worker reads first."""
    pipe.write(len(packed).to_bytes(_LENGTH) + packed)
    pipe.flush()


def _receive() -> bytes:
    # Without a buffer, which would take what comes behind, and whose lock an ending interpreter would wait for.
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        return _exactly(pipe, int.from_bytes(_exactly(pipe, _LENGTH)))


def _exactly(pipe: RawIOBase, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = pipe.read(count - len(found))
        if not part:
            os._exit(1)  # who started this is gone
        found += part
    return found


def _only_here(module: str) -> bool:
    """Whether no import finds a module: it was made from a file given by its path. `__main__` travels anyway."""
    if module == "__main__" or module not in sys.modules:
        return False
    top = module.partition(".")[0]
    return not any(finder.find_spec(top, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))


class Messages(logging.Handler):
    """A listener that writes every event, and what is logged, as a line of JSON."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.WARNING)
        self.stream = stream

    def _tell(self, event: str, *values: Any) -> None:
        # Whoever read this may be gone; the arm is worth finishing all the same.
        with contextlib.suppress(OSError):
            self.stream.write(json.dumps([event, *values]) + "\n")
            self.stream.flush()

    def started(self, label: str, seed: int, steps: int) -> None:
        self._tell("started", label, seed, steps)

    def step(self, done: int, total: int, phase: str) -> None:
        self._tell("step", done, total, phase)

    def skipped(self, label: str, seed: int, steps: int) -> None:
        self._tell("skipped", label, seed, steps)

    def finished(self, label: str, seed: int, metrics: Mapping[str, float]) -> None:
        self._tell("finished", label, seed, dict(metrics))

    def failed(self, label: str, seed: int, error: str) -> None:
        self._tell("failed", label, seed, error)

    def emit(self, record: logging.LogRecord) -> None:
        self._tell("logged", record.getMessage())


def main() -> None:
    """Train whatever the study has left."""
    # A terminal interrupts all processes at once; this one is ended by the one that started it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    packed = _receive()
    threading.Thread(target=_end_with_input, daemon=True).start()
    messages = Messages(sys.stdout)
    logger = logging.getLogger("peftprune")
    logger.addHandler(messages)
    logger.propagate = False
    # Libraries that print must not get between the events.
    with contextlib.redirect_stdout(sys.stderr):
        work = unpack(packed)
        work.run(messages)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    # What is half done is taken up from the last checkpoint.
    os._exit(1)


if __name__ == "__main__":
    main()
