"""Ray: arms as tasks, with and without a file system that the nodes share, and what losing a worker costs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import peftprune
from peftprune.errors import UsageError
from peftprune.study.execution import ray as backend
from peftprune.study.execution.process import pack
from tests.helpers import same
from tests.killing import Heard, left_in, planned


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = r"backend: 'ray' needs Ray, which is not installed\. pip install 'peftprune\[ray\]'"
    with pytest.raises(UsageError, match=message):
        peftprune.compare("lora", backend="ray")
    with pytest.raises(UsageError, match=message), backend._cluster("auto"):
        pass


def test_an_address_without_a_cluster_is_refused_before_ray_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{unused.getsockname()[1]}"

    def init(**given: Any) -> None:
        given["job_config"]._py_driver_sys_path.extend(["the working directory"])
        asked.append(given)
        raise ConnectionError("no cluster\nat all")

    stub: Any = ModuleType("ray")
    services = SimpleNamespace(canonicalize_bootstrap_address={"auto": closed, closed: closed}.__getitem__)
    vars(stub).update(is_initialized=lambda: False, init=init, _private=SimpleNamespace(services=services))
    stub.job_config = SimpleNamespace(JobConfig=SimpleNamespace)
    for name in ("ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "ray", stub)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in (closed, "auto", f"ray://{closed}", "ray://127.0.0.1:port"):
        message = rf"address: '{address}' is not the address of a running Ray cluster \(.*\)\. Start one with"
        with pytest.raises(UsageError, match=message):
            peftprune.compare("lora", backend="ray", address=address)
    assert asked == []
    with pytest.raises(UsageError, match=r"running Ray cluster \(no cluster\)"), backend._cluster("10.0.0.1:6379"):
        pass
    assert asked[0]["address"] == "10.0.0.1:6379"
    assert asked[0]["job_config"]._py_driver_sys_path == [], "tasks would import from the working directory"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None], ids=["http", "closes", "silent"])
def test_an_address_where_something_else_listens_is_refused_in_time(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_TIMEOUT", 0.3)
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            connection.recv(100)
            if answer is None:
                done.wait(10)
            else:
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        address = f"ray://127.0.0.1:{listener.getsockname()[1]}"
        said = "what answers there is not Ray" if answer is not None else "timed out|no answer within"
        with pytest.raises(UsageError, match=rf"address: '{address}' is not the address .* \(({said})"):
            check(address, monkeypatch)
        done.set()


def test_a_slow_name_lookup_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_TIMEOUT", 0.1)
    done = threading.Event()
    monkeypatch.setattr(backend.socket, "getaddrinfo", lambda *_, **__: done.wait(10))
    with pytest.raises(UsageError, match=r"\(no answer within 0\.1 seconds\)"):
        check("ray://far.example:1", monkeypatch)
    done.set()


def test_an_address_where_grpc_answers_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            assert connection.recv(100).startswith(b"PRI * HTTP/2.0")
            connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        check(f"ray://127.0.0.1:{listener.getsockname()[1]}", monkeypatch)


def check(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check_cluster` without Ray."""
    monkeypatch.setattr(backend, "_load_ray", lambda: SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    backend.check_cluster(address)


def test_an_arm_trained_out_of_sight_comes_back_whole(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task's function itself, on a node that does not see the driver's folder."""
    monkeypatch.setattr(backend.tempfile, "gettempdir", lambda: str(tmp_path / "node"))
    monkeypatch.chdir(tmp_path)
    work = planned(
        "shuffled,lora-drop(sample=0.25,probe_passes=1)", tmp_path / "study", tiny_bert, budget="rank=2,steps=8"
    )
    told: list[tuple[int, str]] = []

    class Board:
        class add:  # noqa: N801
            @staticmethod
            def remote(index: int, line: str) -> None:
                told.append((index, line))

    packed = pack(work)
    first = backend._train(packed, 0, "no such token", "/no/such/folder", Board)
    second = backend._train(packed, 1, "no such token", str(tmp_path), Board, first)
    third = backend._train(packed, 0, "no such token", str(tmp_path), Board)
    assert set(third) == set(first), "the result that its dependant was given passes for the arm"
    assert json.loads(told[0][1]) == ["started", "lora-drop", 0, 8]
    assert json.loads(told[-1][1])[0] == "finished"
    assert not list((tmp_path / "study" / "arms").rglob("*.*"))
    for files in (first, second):
        assert {"result.json", "config.json", "adapter/adapter_model.safetensors", "predictions.parquet"} <= set(files)
        assert not [name for name in files if "checkpoint" in name or ".lock" in name]
    assert not list((tmp_path / "node").rglob("*.*")), "something is left on the node"


RUN = """
import contextlib, sys
from pathlib import Path
import psutil
import ray
from peftprune.study.execution import ray as backend
from peftprune.study.progress import Reporter
from peftprune.study.execution.process import unpack

work, fate = unpack(Path(sys.argv[1]).read_bytes()), sys.argv[2]
killed = []

class Killing(Reporter):
    def new_listener(self):
        return Killing(1)

    def step(self, done, total, phase, ranks):
        if fate == "kill" and not killed and done > 4:
            tasks = [p for p in psutil.process_iter(["cmdline"]) if "ray::_train" in " ".join(p.info["cmdline"] or ())]
            mine = [p for p in tasks if psutil.Process() in [*p.parents()]]
            for task in mine[:1]:
                killed.append(task.pid)
                task.kill()

@contextlib.contextmanager
def nowhere(folder):
    yield "no such token"

if fate == "out of sight":
    backend._marker_file = nowhere
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
backend.run_on_ray(work, Killing(1), address="local", gpus=0)
ray.shutdown()
print("killed", len(killed))
"""


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["kill", "out of sight"])
def test_a_study_over_ray_gives_what_one_process_gives(fate: str, tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    methods = "lora,lorpa(initial_rank=8),shuffled,lora-drop(sample=0.25,probe_passes=2)"
    alone, ray = (planned(methods, tmp_path / n, tiny_bert, budget="rank=2,steps=24", checkpoints=6) for n in "ab")
    alone.run(Heard())
    (tmp_path / "work.pkl").write_bytes(pack(ray))
    command = [sys.executable, "-c", RUN, str(tmp_path / "work.pkl"), fate]
    patient = os.environ | {"RAY_raylet_start_wait_time_s": "600"}  # a machine with other work takes its time
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=patient)
    assert done.returncode == 0, done.stderr
    assert ("killed 1" in done.stdout) == (fate == "kill")
    assert same(left_in(tmp_path / "a"), left_in(tmp_path / "b"))
