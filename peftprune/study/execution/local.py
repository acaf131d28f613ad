"""Trains the arms of a study on this machine, in this process or in several processes side by side.

Every process trains one arm at a time. This one also shows the events that the others write.
"""

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

import psutil
import torch

from peftprune.errors import UsageError
from peftprune.models.precision import frozen_bytes
from peftprune.study.arguments import Workers
from peftprune.study.execution import process
from peftprune.study.execution.process import pack, python_path, send
from peftprune.study.execution.work import Work
from peftprune.study.progress import Reporter

_SECONDS = 1e-9
"""Estimated seconds per training example and model parameter on one thread."""
_MIN_SECONDS = 30.0
"""No further process is started for less than this estimate of the training time."""
_BYTES_PER_ARM = 4e9
"""Memory that an arm may need beside its model."""
_GRACE = 2.0
"""Seconds in which a process exits after the last arm. One that is still starting is not waited for."""
_log = logging.getLogger(__name__)


@cache
def cores() -> int:
    """Returns torch's default number of threads: the cores of the machine or container, or OMP_NUM_THREADS.

    It is cached, since arms change torch's number of threads.
    """
    return torch.get_num_threads()


def default_threads(arms: int) -> int:
    """Returns the CPU threads per arm of a new study: the cores, divided by the arms that can run side by side.

    Arms side by side on one thread each finish sooner than one after another on many threads.
    """
    return max(1, cores() // max(1, min(arms, torch.cuda.device_count() or cores())))


def automatic_workers(work: Work) -> int:
    """Returns the number of processes for `workers="auto"`: one per GPU, or as many as cores and memory allow.

    It is 1, this process, if starting others would take longer than the training.
    """
    left = work.unfinished().values()
    setups = {name: lazy.setup for name, lazy in work.setups.items()}
    seconds = sum(
        _SECONDS * setups[arm.task].base_parameters * arm.plan.budget.total_steps * arm.plan.settings.batch_size
        for arm in left
    )
    if seconds < _MIN_SECONDS:
        return 1
    loaded = 2 * max(frozen_bytes(setup.model.model) for setup in setups.values())
    fit = int(psutil.virtual_memory().available / (_BYTES_PER_ARM + loaded))
    return max(1, min(torch.cuda.device_count() or cores() // work.threads, len(left), fit))


def run_in_processes(work: Work, workers: Workers, reporter: Reporter) -> None:
    """Trains the study in this process and, if `workers` is above 1, in further ones beside it.

    Raises UsageError if `workers` is a number above 1 and a strategy cannot be sent to another process.
    """
    count = automatic_workers(work) if workers == "auto" else min(workers, len(work.unfinished()))
    packed = None
    if count > 1:
        try:
            packed = pack(work)
        except UsageError as error:
            if workers != "auto":
                raise
            _log.warning("%s. Until then arms are trained one after another", error)
    with ExitStack() as stack:
        threads = []
        if packed is not None:
            others = (_worker(packed, i, work.threads, reporter) for i in range(1, count))
            threads = [stack.enter_context(worker) for worker in others]
        # It has loaded libraries, models and data already, so it trains while the others still start.
        work.run(reporter)
        for thread in threads:
            thread.join(_GRACE)


@contextmanager
def _worker(packed: bytes, index: int, threads: int, reporter: Reporter) -> Iterator[threading.Thread]:
    """Starts a training process and yields the thread that forwards its events; terminates the process on exit."""
    command = [sys.executable, "-m", process.__name__]
    # OpenMP threads sleep at barriers instead of spinning, which would slow the other processes.
    env = {"GOMP_SPINCOUNT": "1000"} | os.environ | python_path() | {"OMP_NUM_THREADS": str(threads)}
    env |= _visible_device(index)
    # A terminal interrupts its whole session at once; this process ends the worker, which need not report an interrupt.
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True)
    thread = threading.Thread(target=_forward_events, args=(worker, packed, reporter))
    thread.start()
    try:
        yield thread
    finally:
        worker.terminate()
        thread.join()
        assert worker.stdout is not None
        worker.stdout.close()


def forward_event(line: str, listener: Reporter) -> None:
    with contextlib.suppress(ValueError):  # a line is cut off if its writer was killed
        event, *values = json.loads(line)
        getattr(listener, event)(*values)


def _visible_device(index: int) -> dict[str, str]:
    """Returns the environment variable that assigns one of the GPUs to a process."""
    if not (devices := torch.cuda.device_count()):
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(devices)]
    return {"CUDA_VISIBLE_DEVICES": names[index % devices]}


def _forward_events(worker: subprocess.Popen[bytes], packed: bytes, reporter: Reporter) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    listener = reporter.new_listener()
    with contextlib.suppress(OSError):  # the process may end before it has read its input; `lost` reports it
        send(packed, worker.stdin)
    for line in worker.stdout:
        forward_event(line.decode(), listener)
    with contextlib.suppress(OSError):
        worker.stdin.close()
    if worker.wait() not in (0, -signal.SIGTERM):
        listener.lost(worker.returncode)
