"""Ray: every arm a task, on whichever node has the cores and GPUs for it.

Where a node sees the study's folder, tasks write into it. Elsewhere they train in a folder of their node's own, and
the arm's files travel back to the driver. Ray schedules, and repeats tasks whose process or node was lost.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftprune.errors import RunError, UsageError
from peftprune.files import write_atomically
from peftprune.study.execution.local import hear, module_path
from peftprune.study.execution.process import Messages, pack, unpack
from peftprune.study.execution.work import StudyArm, Work
from peftprune.study.progress import Reporter
from peftprune.study.store import ArmFolder, StudyFolder

_RETRIES = 3
"""Of a task whose process or node was lost."""
_PAUSE = 0.5
"""Seconds between two looks at what the tasks say."""
_STEP_PAUSE = 0.2
"""Seconds between two reports of a task's steps."""

Files = dict[str, bytes]
"""The files of an arm by name; their folder is flat but for the adapter's."""


def run_on_ray(work: Work, reporter: Reporter, *, address: str, gpus: float | None) -> None:
    """Train what is not done as tasks of a Ray cluster.

    Args:
        work: the planned study.
        reporter: told what the tasks tell.
        address: as `ray.init` takes it.
        gpus: of each arm; None for 1 where the study was planned on a GPU.

    Raises:
        UsageError: without Ray, or when the address names no cluster.
    """
    work = replace(work, study=StudyFolder(work.study.path.absolute()))
    with _cluster(address) as ray, _token(work.study.path) as token:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        board = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
        train = ray.remote(_train).options(
            num_cpus=work.threads,
            num_gpus=float(work.device != "cpu") if gpus is None else gpus,
            max_retries=_RETRIES,
            runtime_env={"env_vars": module_path() | {"GOMP_SPINCOUNT": "1000"}},
        )
        packed = ray.put(pack(work))
        refs: dict[int, Any] = {}
        listeners: dict[int, Reporter] = {}
        unfinished = work.unfinished()
        for i, arm in enumerate(work.ordered):
            if i not in unfinished:
                work.attempt(arm, reporter)
                continue
            listeners[i] = reporter.another()
            # A task is given what those before it return, so that Ray starts it after them.
            first = [
                refs[j] if j in refs else ray.put(_files(work.folder(other)))
                for j, other in enumerate(work.ordered)
                if any(other is a for a in arm.chain[:-1])
            ]
            refs[i] = train.remote(packed, i, token, os.getcwd(), board, *first)
        try:
            _collect(ray, work, refs, board, listeners)
        except BaseException:
            for ref in refs.values():
                ray.cancel(ref, force=True)
            raise


def _collect(ray: Any, work: Work, refs: dict[int, Any], board: Any, listeners: dict[int, Reporter]) -> None:
    """Wait for every task, store what it returned, and pass on what it told."""
    arms, waiting = work.ordered, {ref: i for i, ref in refs.items()}

    def listen() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the board was lost; results do not go through it
            for i, line in ray.get(board.take.remote()):
                hear(listeners[i], line)

    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=_PAUSE)
        listen()
        for ref in done:
            i = waiting.pop(ref)
            try:
                files = ray.get(ref)
            except ray.exceptions.RayError as error:
                told = RunError(f"the Ray task was lost ({type(error).__name__}: {str(error).splitlines()[-1]})")
                _record(work, arms[i], told, listeners[i])
            else:
                folder = work.folder(arms[i])
                for name in sorted(files, key=lambda name: name == "result.json"):
                    write_atomically(folder.path / name, files[name])
                if files and folder.result() is not None:
                    folder.tidy()
    listen()


def _record(work: Work, arm: StudyArm, error: RunError, listener: Reporter) -> None:
    folder = work.folder(arm)
    if folder.result() is None:
        folder.record_error(error, arm.spec.label, arm.seed)
        listener.failed(arm.name, arm.seed, str(error))


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError.of("backend", "ray", "needs Ray, which is absent", "pip install 'peftprune[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        problem = f"names no Ray cluster that answers ({str(error).splitlines()[0]})"
        cure = "Start one with `ray start --head`, or give --address local"
        raise UsageError.of("address", address, problem, cure) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """The name of a file in a folder; who sees it sees the folder."""
    path = folder / f".shared-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


# --- on the nodes -----------------------------------------------------------------------------------------------------


class _Board:
    """What tasks tell and the driver has not taken yet; a Ray actor."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def tell(self, index: int, line: str) -> None:
        self.lines.append((index, line))

    def take(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines


class _Sender:
    """A stream whose lines go to the board; of a task's steps, a few a second."""

    def __init__(self, board: Any, index: int) -> None:
        self.board, self.index, self.last = board, index, 0.0

    def write(self, line: str) -> None:
        now = time.monotonic()
        if line.startswith('["step"'):
            if now - self.last < _STEP_PAUSE:
                return
            self.last = now
        self.board.tell.remote(self.index, line)

    def flush(self) -> None:
        pass


def _train(packed: bytes, index: int, token: str, folder: str, board: Any, *first: Files) -> Files:
    """Train one arm; returns its files where the driver cannot see them.

    Args:
        packed: the study's work.
        index: of the arm, among the work's in their order.
        token: a file that is in the study's folder.
        folder: the driver's working directory, from which paths may count.
        board: is told how it goes on.
        first: the files of the arms that this one depends on, where those trained elsewhere.
    """
    with contextlib.suppress(OSError):
        os.chdir(folder)
    work = unpack(packed)
    arm = work.ordered[index]
    shared = (work.study.path / token).exists()
    if not shared:
        # Always the same place, so that a task that is repeated on its node goes on from its checkpoints; and the arm's
        # alone, since the few files of arms that it depends on would pass for those arms, were they trained here.
        own = Path(tempfile.gettempdir()) / f"peftprune-{Path.home().name}" / work.folder(arm).path.name
        work = replace(work, study=StudyFolder(own))
        for before, files in zip(arm.chain[:-1], first, strict=True):
            for name in files.keys() & {"result.json", "error.json"}:
                write_atomically(work.folder(before).path / name, files[name])
    work.only(index).run(Messages(_Sender(board, index)))  # type: ignore[arg-type]
    if shared:
        return {}
    files = _files(work.folder(arm))
    shutil.rmtree(work.study.path, ignore_errors=True)
    return files


def _files(folder: ArmFolder) -> Files:
    """What an arm has to show, without locks, checkpoints and half-written files."""
    found = [p for p in folder.path.rglob("*") if p.is_file() and folder.checkpoints not in p.parents]
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in found if not p.name.startswith(".")}
