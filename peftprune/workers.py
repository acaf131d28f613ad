"""Several processes on one machine that train the arms of one study, each an arm at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import torch

from peftprune.errors import UsageError
from peftprune.progress import Reporter
from peftprune.queue import Work
from peftprune.worker import pack

Workers = int | Literal["auto"]


def count_workers(workers: Workers | str, threads: int | None) -> int:
    """How many processes: as asked, or one a GPU, or as many as have cores of their own.

    Args:
        workers: a number from 1, also as text, or "auto".
        threads: of each arm, where that is known already; 1 otherwise.

    Raises:
        UsageError: for anything else.
    """
    if workers == "auto":
        return torch.cuda.device_count() or max(1, cores() // (threads or 1))
    count = int(workers) if isinstance(workers, str) and workers.isdecimal() else workers
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError.of("workers", workers, "is no number of processes", 'Give 1 or more, or "auto"')
    return count


def cores() -> int:
    """The cores that this process may use, which containers and schedulers keep below those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(work: Work, count: int, reporter: Reporter) -> None:
    """Train the study in `count` processes; whatever they leave behind, because they were killed, is trained here."""
    unfinished = sum(work.folder(arm).result() is None for arm in work.ordered)
    if min(count, unfinished) > 1:
        with ExitStack() as stack:
            path = work.study.path / f".work-{os.getpid()}.pkl"
            stack.callback(path.unlink, missing_ok=True)
            path.write_bytes(pack(work))
            relays = [
                stack.enter_context(_worker(path, i, work.threads, reporter)) for i in range(min(count, unfinished))
            ]
            for relay in relays:
                relay.join()
    work.run(reporter)


@contextmanager
def _worker(path: Path, index: int, threads: int, reporter: Reporter) -> Iterator[threading.Thread]:
    """A process at work, which ends with the context at the latest, and the thread that listens to it."""
    command = [sys.executable, "-m", "peftprune.worker", str(path)]
    env = surroundings(threads) | _device(index)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    relay = threading.Thread(target=_relay, args=(process, reporter))
    relay.start()
    try:
        yield relay
    finally:
        process.terminate()
        relay.join()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


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


def _relay(process: subprocess.Popen[str], reporter: Reporter) -> None:
    assert process.stdout is not None
    listener = reporter.another()
    for line in process.stdout:
        hear(listener, line)
    if process.wait() not in (0, -signal.SIGTERM):
        listener.lost(process.returncode)
