"""Several processes on one machine that train the arms of one study, each an arm at a time."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import psutil
import torch

from peftprune.errors import UsageError
from peftprune.models.precision import frozen_bytes
from peftprune.study.execution.process import pack, send
from peftprune.study.execution.work import Work
from peftprune.study.progress import Reporter

Workers = int | Literal["auto"]
_SECONDS = 1e-9
"""That one thread needs, about, for a training example and a weight of the model."""
_WORTHWHILE = 30.0
"""Seconds of training below which no further process is started."""
_MEMORY = 4e9
"""Bytes that an arm may hold beside its model."""
_log = logging.getLogger(__name__)


def check_workers(workers: Workers | str) -> Workers:
    """A number from 1, also as text, or "auto".

    Raises:
        UsageError: for anything else.
    """
    if workers == "auto":
        return "auto"
    count = int(workers) if isinstance(workers, str) and workers.isdecimal() else workers
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError.of("workers", workers, "is no number of processes", 'Give 1 or more, or "auto"')
    return count


@cache
def cores() -> int:
    """The cores that torch takes here unless told otherwise: the machine's, a container's, or OMP_NUM_THREADS.

    Found once, since arms narrow torch's number of threads.
    """
    return torch.get_num_threads()


def default_threads(arms: int) -> int:
    """Threads of every arm of a study: its share of the cores when as many arms run at once as there can.

    One thread an arm and an arm a core finish more arms than many threads for one arm after another.

    Args:
        arms: of the study when it is created.
    """
    return max(1, cores() // max(1, min(arms, torch.cuda.device_count() or cores())))


def automatic(work: Work) -> int:
    """How many processes train a study where nobody says: one a GPU, or as many as cores and memory allow.

    One, this one, where starting others would take longer than the training.
    """
    left = work.unfinished().values()
    setups = {name: source.setup for name, source in work.sources.items()}
    seconds = sum(
        _SECONDS * setups[arm.task].base_parameters * arm.plan.budget.total_steps * arm.plan.settings.batch_size
        for arm in left
    )
    if seconds < _WORTHWHILE:
        return 1
    held = 2 * max(frozen_bytes(setup.model.model) for setup in setups.values())
    fit = int(psutil.virtual_memory().available / (_MEMORY + held))
    return max(1, min(torch.cuda.device_count() or cores() // work.threads, len(left), fit))


def run_in_processes(work: Work, workers: Workers, reporter: Reporter) -> None:
    """Train the study in processes; whatever they leave behind, because they were killed, is trained here.

    Raises:
        UsageError: when a number of processes was asked for and a strategy cannot be sent to them.
    """
    count = automatic(work) if workers == "auto" else min(workers, len(work.unfinished()))
    packed = None
    if count > 1:
        try:
            packed = pack(work)
        except UsageError as error:
            if workers != "auto":
                raise
            _log.warning("%s. Until then arms are trained one after another", error)
    if packed is not None:
        with ExitStack() as stack:
            relays = [stack.enter_context(_worker(packed, i, work.threads, reporter)) for i in range(count)]
            for relay in relays:
                relay.join()
    work.run(reporter)


@contextmanager
def _worker(packed: bytes, index: int, threads: int, reporter: Reporter) -> Iterator[threading.Thread]:
    """A process at work, which ends with the context at the latest, and the thread that listens to it."""
    command = [sys.executable, "-m", "peftprune.study.execution.process"]
    env = surroundings(threads) | _device(index)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    relay = threading.Thread(target=_relay, args=(process, packed, reporter))
    relay.start()
    try:
        yield relay
    finally:
        process.terminate()
        relay.join()
        assert process.stdout is not None
        process.stdout.close()


def surroundings(threads: int) -> dict[str, str]:
    """The environment of a process that trains: this one's, with its modules, and threads that do not spin."""
    return {"GOMP_SPINCOUNT": "1000"} | os.environ | module_path() | {"OMP_NUM_THREADS": str(threads)}


def module_path() -> dict[str, str]:
    """What makes another process find the user's own modules, wherever its interpreter keeps the installed ones."""
    paths = [Path(p).absolute() for p in dict.fromkeys(sys.path)]
    installed = (Path(sys.prefix), Path(sys.base_prefix))
    return {"PYTHONPATH": os.pathsep.join(str(p) for p in paths if not any(i in p.parents for i in installed))}


def hear(listener: Reporter, line: str) -> None:
    """Pass on an event that another process wrote."""
    with contextlib.suppress(ValueError):  # a line that was cut off when its writer was killed
        event, *values = json.loads(line)
        getattr(listener, event)(*values)


def _device(index: int) -> dict[str, str]:
    devices = torch.cuda.device_count()
    if not devices:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(devices)]
    return {"CUDA_VISIBLE_DEVICES": names[index % devices]}


def _relay(process: subprocess.Popen[bytes], packed: bytes, reporter: Reporter) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    listener = reporter.another()
    with contextlib.suppress(OSError):  # it ended before it had read everything, which is seen below
        send(packed, process.stdin)
    for line in process.stdout:
        hear(listener, line.decode())
    with contextlib.suppress(OSError):
        process.stdin.close()
    if process.wait() not in (0, -signal.SIGTERM):
        listener.lost(process.returncode)
