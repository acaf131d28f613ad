"""Trains the arms of a study on a Ray cluster: one task per arm, on any node with enough cores and GPUs.

On a node that shares the study's folder, a task writes into it. On any other node it trains in a temporary folder and
returns the arm's files to the driver. Ray schedules the tasks and repeats those whose process or node was lost.
"""

import contextlib
import os
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peftprune.errors import RunError, UsageError
from peftprune.files import write_atomically
from peftprune.study.execution.local import forward_event
from peftprune.study.execution.process import EventWriter, pack, python_path, unpack
from peftprune.study.execution.work import Work
from peftprune.study.progress import Reporter
from peftprune.study.store import PAUSED, ArmFolder, StudyFolder

_RETRIES = 3
"""Of a task whose process or node was lost."""
_PAUSE = 0.5
"""Seconds between two collections of the tasks' events."""
_STEP_PAUSE = 0.2
"""Seconds between two step events of a task."""
_TIMEOUT = 3.0
"""Seconds in which a cluster is found and answers."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How an HTTP/2 connection begins (RFC 9113, section 3.4), with empty settings. Ray's services speak gRPC over it."""
_CLIENT_PORT = 10001
"""Ray's default port for addresses that begin with ray://."""

Files = dict[str, bytes]
"""Contents of an arm's files by their path in the arm's folder."""


def run_on_ray(work: Work, reporter: Reporter, *, address: str, gpus: float) -> None:
    """Trains the unfinished arms as tasks of a Ray cluster, whose events go to the reporter.

    `address` is as `ray.init` takes it; `gpus` per arm may be a fraction. Raises UsageError if Ray is not installed, or
    there is no cluster at the address.
    """
    work = replace(work, study=StudyFolder(work.study.path.absolute()))
    with _cluster(address) as ray, _marker_file(work.study.path) as marker:
        on_this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        events = ray.remote(num_cpus=0, scheduling_strategy=on_this_node)(_EventBuffer).remote()
        train = ray.remote(_train).options(
            num_cpus=work.threads,
            num_gpus=gpus,
            max_retries=_RETRIES,
            runtime_env={"env_vars": python_path() | {"GOMP_SPINCOUNT": "1000"}},
        )
        packed = ray.put(pack(work))
        tasks: dict[int, Any] = {}
        listeners: dict[int, Reporter] = {}
        unfinished = work.unfinished()
        index = {id(arm): i for i, arm in enumerate(work.ordered)}
        for i, arm in enumerate(work.ordered):
            if i not in unfinished:
                work.attempt(arm, reporter)
                continue
            listeners[i] = reporter.new_listener()
            # Ray starts a task once the results that it takes as arguments exist.
            needed = [
                tasks[index[id(other)]] if index[id(other)] in tasks else ray.put(_read_files(work.folder(other)))
                for other in arm.dependencies
            ]
            paused = ray.put(_read_files(work.folder(arm)) if work.folder(arm).paused() else {})
            tasks[i] = train.remote(packed, i, marker, os.getcwd(), events, *needed, paused=paused)
        try:
            _collect(ray, work, tasks, events, listeners)
        except BaseException:
            for task in tasks.values():
                ray.cancel(task, force=True)
            raise


class _NoPaths(list[str]):
    """Keeps Ray from putting the working directory and the script's folder first on the workers' `sys.path`."""

    def extend(self, paths: Iterable[str]) -> None:
        pass


def _collect(ray: Any, work: Work, tasks: dict[int, Any], events: Any, listeners: dict[int, Reporter]) -> None:
    """Waits for every task, stores the files that it returns, and forwards its events."""
    arms, waiting = work.ordered, {task: i for i, task in tasks.items()}

    def forward_events() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # results do not depend on the buffer, which may be lost
            for i, line in ray.get(events.take.remote()):
                forward_event(line, listeners[i])

    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=_PAUSE)
        forward_events()
        for task in done:
            i = waiting.pop(task)
            arm, folder = arms[i], work.folder(arms[i])
            try:
                files = ray.get(task)
            except ray.exceptions.RayError as error:
                lost = RunError(f"the Ray task was lost ({type(error).__name__}: {str(error).splitlines()[-1]})")
                if folder.result() is None:
                    folder.record_error(lost, arm.spec.label, arm.seed, work.token)
                    listeners[i].failed(arm.name, arm.seed, str(lost))
            else:
                # An arm counts as finished once its result is there, so that is written last.
                for name in sorted(files, key=lambda name: name in (PAUSED, "result.json")):
                    write_atomically(folder.path / name, files[name])
                if files and folder.result() is not None:
                    folder.tidy()
    forward_events()


def _load_ray() -> Any:
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        problem = "needs Ray, which is not installed"
        raise UsageError.of("backend", "ray", problem, "pip install 'peftprune[ray]'") from None
    return ray


@contextmanager
def _errors_of(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        problem = f"is not the address of a running Ray cluster ({reason})"
        cure = "Start one with `ray start --head`, or give --address local"
        raise UsageError.of("address", address, problem, cure) from error


def _named(address: str) -> str:
    return os.environ.get("RAY_ADDRESS") or address if address == "auto" else address


def check_cluster(address: str) -> None:
    """Checks that Ray may be at the address, for which Ray itself takes twenty seconds and many log lines.

    Raises UsageError if nothing or something else answers, or Ray is not installed.
    """
    ray = _load_ray()
    named = _named(address)
    if named == "local" or ray.is_initialized():
        return
    with _errors_of(address):
        _in_time(lambda: _greet(ray, named))


def _in_time(check: Callable[[], None]) -> None:
    """Runs a check in a thread that may be left behind, since looking up a name has no time limit of its own."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            check()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([done], _TIMEOUT).done:
        raise TimeoutError(f"no answer within {_TIMEOUT:g} seconds")
    done.result()


def _greet(ray: Any, named: str) -> None:
    """Raises an error if nothing or something else than gRPC answers at the address."""
    found = named if "://" in named else ray._private.services.canonicalize_bootstrap_address(named)
    url = urlsplit(found if "://" in found else f"//{found}")
    if url.scheme not in ("", "ray"):
        return
    with socket.create_connection((url.hostname, url.port or _CLIENT_PORT), timeout=_TIMEOUT) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return
        connection.sendall(_GREETING)
        with connection.makefile("rb") as answer:
            # A server begins with its own settings: a frame of type 4.
            if answer.read(9)[3:4] != b"\x04":
                raise ConnectionError("what answers there is not Ray")


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    ray = _load_ray()
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    if "://" not in _named(address):  # Ray's client, which takes no job_config, sends no paths
        options["job_config"] = ray.job_config.JobConfig()
        options["job_config"]._py_driver_sys_path = _NoPaths()
    with _errors_of(address):
        ray.init(address=address, log_to_driver=False, **options)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _marker_file(folder: Path) -> Iterator[str]:
    """Creates a file in the study's folder and yields its name. A node that sees the file shares the folder."""
    path = folder / f".shared-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


# --- on the nodes -----------------------------------------------------------------------------------------------------
class _EventBuffer:
    """A Ray actor that keeps the tasks' events until the driver takes them."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def add(self, index: int, line: str) -> None:
        self.lines.append((index, line))

    def take(self) -> list[tuple[int, str]]:
        lines, self.lines = self.lines, []
        return lines


class _EventStream:
    """A text stream whose lines go to the event buffer. Of the step events it passes on a few per second."""

    def __init__(self, events: Any, index: int) -> None:
        self.events, self.index, self.last = events, index, 0.0

    def write(self, line: str) -> None:
        now = time.monotonic()
        if line.startswith('["step"'):
            if now - self.last < _STEP_PAUSE:
                return
            self.last = now
        self.events.add.remote(self.index, line)

    def flush(self) -> None:
        pass


def _train(
    packed: bytes, index: int, marker: str, directory: str, events: Any, *needed: Files, paused: Files | None = None
) -> Files:
    """Trains the arm `work.ordered[index]`. Returns its files, or nothing on a node that shares the study's folder.

    The study's folder is shared where it holds the file `marker`. Relative paths start from the driver's `directory`.
    `needed` are the files of each arm that this one depends on, where they were trained on another node, and `paused`
    its own if it has paused.
    """
    with contextlib.suppress(OSError):
        os.chdir(directory)
    work = unpack(packed)
    arm = work.ordered[index]
    shared = (work.study.path / marker).exists()
    if not shared:
        # The path is fixed, so that a task repeated on its node resumes from its checkpoints. It belongs to this arm
        # alone: a task that trains one of its dependencies here must not find that arm finished, with few of its files.
        own = Path(tempfile.gettempdir()) / f"peftprune-{Path.home().name}" / work.folder(arm).path.name
        work = replace(work, study=StudyFolder(own))
        for name, data in (paused or {}).items():
            write_atomically(work.folder(arm).path / name, data)
        for other, files in zip(arm.dependencies, needed, strict=True):
            for name in files.keys() & {"result.json", "error.json"}:
                write_atomically(work.folder(other).path / name, files[name])
    work.only(index).run(EventWriter(_EventStream(events, index)))  # type: ignore[arg-type]
    if shared:
        return {}
    files = _read_files(work.folder(arm))
    shutil.rmtree(work.study.path, ignore_errors=True)
    return files


def _read_files(folder: ArmFolder) -> Files:
    """Reads an arm's files, without locks and half-written files, and with checkpoints only where it has paused."""
    goes_on = folder.paused() is not None and folder.result() is None
    files = [p for p in folder.path.rglob("*") if p.is_file()]
    found = [p for p in files if goes_on or folder.checkpoints not in p.parents]
    return {str(p.relative_to(folder.path)): p.read_bytes() for p in found if not p.name.startswith(".")}
