"""Arms shared among processes: locks, waiting, failures, requests, workers."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from peftprune.errors import RunError, UsageError
from peftprune.files import write_json
from peftprune.models import precision
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.view import StepView
from peftprune.study.execution import local as workers
from peftprune.study.execution import process
from peftprune.study.execution import work as queue
from peftprune.study.execution.backend import Backend
from peftprune.study.execution.local import _worker, automatic_workers, forward_event, run_in_processes
from peftprune.study.execution.process import EventWriter, pack, python_path
from peftprune.study.execution.work import Work
from peftprune.study.progress import Reporter
from peftprune.study.store import SCHEMA, ArmFolder, StudyFolder
from tests.helpers import AFTER_PROGRESS, same
from tests.killing import Heard, left_by, left_in, planned
from tests.stored import empty_result

# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    folder = ArmFolder(tmp_path / "arm")
    with folder.lock() as first, folder.lock() as second:
        assert (first, second) == (True, False)
    with folder.lock() as again:
        assert again


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from peftprune.study.store import ArmFolder
with ArmFolder(Path({str(tmp_path)!r})).lock() as held:
    print(held, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with ArmFolder(tmp_path).lock() as held:
            assert not held
        holder.kill()
    with ArmFolder(tmp_path).lock() as held:
        assert held


def test_a_look_at_who_holds_an_arm_leaves_it_as_it_is(tmp_path: Path) -> None:
    folder = ArmFolder(tmp_path / "arm")
    assert not folder.held
    assert not folder.path.exists()
    with folder.lock():
        assert folder.held
    assert not folder.held


# --- the queue, with arms that take no time ---------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the arms that were trained. Training is pretended; "lora" fails."""
    found: list[str] = []

    def pretend(plan: Any, inputs: Any, seed: int, folder: ArmFolder, config: Mapping[str, Any], *rest: Any) -> Any:
        found.append(plan.label)
        if plan.label == "lora":
            raise RunError("out of luck")
        state = {"layer": 0, "kind": "query", "density": 1.0, "shared_with": []}
        rows = [{"site": s.name, "rank": plan.spec.ranks[s.name], **state} for s in plan.shapes]
        result = empty_result() | {"schema": SCHEMA, "label": plan.label, "seed": seed, "allocation": rows}
        write_json(folder.path / "result.json", result)
        return result

    monkeypatch.setattr(queue, "run_arm", pretend)
    return found


def test_what_failed_is_tried_once_by_all_together_and_again_by_the_next_run(
    trained: list[str], tiny_bert: Path, tmp_path: Path
) -> None:
    first, second = Heard(), Heard()
    work = planned("lora,dora", tmp_path, tiny_bert)
    work.run(first)
    work.run(second)
    assert trained == ["lora", "dora"]
    assert first.names == ["started", "failed", "started", "finished"]
    assert first.events[1] == ("failed", "lora", 0, "out of luck")
    assert second.names == ["skipped", "skipped"]
    planned("lora,dora", tmp_path, tiny_bert).run(second)
    assert trained == ["lora", "dora", "lora"]


def test_what_failed_under_a_clock_that_is_ahead_is_tried_again(
    trained: list[str], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["lora", "shuffled(of='lora')"]
    first, later = (planned(methods, tmp_path, tiny_bert) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 4e9)
        first.run(Heard())
    later.run(Heard())
    assert trained == ["lora", "lora"]
    # The other process records its failure too; whoever needs the arm still knows that it has failed here.
    heard = Heard()
    first.run(heard)
    assert heard.names == ["skipped", "skipped"]
    folder = first.folder(first.arms[0])
    old = json.loads((folder.path / "error.json").read_text())
    del old["attempts"]
    (folder.path / "error.json").write_text(json.dumps(old))
    assert not folder.failed_in(first.token)


def test_an_arm_waits_for_what_it_depends_on_wherever_that_is_trained(
    trained: list[str], tiny_bert: Path, tmp_path: Path
) -> None:
    work, heard = planned("shuffled,lora-drop", tmp_path, tiny_bert), Heard()
    first, dependent = work.ordered
    assert (first.name, dependent.name) == ("lora-drop", "shuffled")
    with work.folder(first).lock():
        assert not work.attempt(first, heard)
        assert not work.attempt(dependent, heard)
        other = threading.Thread(target=work.only(1).run, args=(heard,))
        other.start()
        time.sleep(0.1)
        assert trained == []
    other.join()
    assert trained == ["lora-drop", "shuffled"]
    assert heard.names == ["started", "finished", "started", "finished"]


def test_what_needs_an_arm_that_failed_fails_too(trained: list[str], tiny_bert: Path, tmp_path: Path) -> None:
    work, heard = planned(["lora", "shuffled(of='lora')"], tmp_path, tiny_bert), Heard()
    work.run(heard)
    assert heard.names == ["started", "failed", "started", "failed"]
    assert "needs the outcome of 'lora', which failed" in heard.events[-1][-1]


def test_what_a_killed_process_left_is_removed(trained: list[str], tiny_bert: Path, tmp_path: Path) -> None:
    work = planned("dora", tmp_path, tiny_bert)
    work.run(Heard())
    folder = work.folder(work.arms[0])
    folder.record_error(ValueError("before"), "dora", 0)
    (folder.checkpoints / "checkpoint-3").mkdir(parents=True)
    (folder.path / ".config.json.1a2b.tmp").write_text("{")
    work.run(Heard())
    assert sorted(p.name for p in folder.path.iterdir() if p.name != ".lock") == ["result.json"]
    assert trained == ["dora"]


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_study_grows_while_others_work_on_it_and_loses_nothing(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, requests = StudyFolder(tmp_path), []
    registered = StudyFolder.registered
    monkeypatch.setattr(StudyFolder, "registered", lambda _, *given: requests.append(given) or registered(_, *given))
    for methods, rate in (("lora", 1e-3), ("dora", 1e-3), ("lora", 1.0)):
        planned(methods, tmp_path / "planned", tiny_bert, learning_rate=rate)
    first, second, other = requests
    with study.registered(*first):
        with study.registered(*first), study.registered(), study.registered(*second):
            pass
        assert [a["label"] for a in study.read_request()["arms"]] == ["lora", "dora"]
        refused = r"output_dir: .* is in use by another process, .* Wait until it has ended, or name another"
        with pytest.raises(UsageError, match=refused), study.registered(*other):
            pass
        assert [a["label"] for a in study.read_request()["arms"]] == ["lora", "dora"]
    # What a killed process leaves holds nothing up.
    (tmp_path / ".at-work-dead").touch()
    with study.registered(*other):
        assert study.read_request()["arms"] == other[0]["arms"]
    assert not list(tmp_path.glob(".at-work-*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 0}, "workers: 0 is not a number of processes. Give 1 or more"),
        ({"workers": "many"}, "workers: 'many' is not a number"),
        ({"workers": True}, "workers: True is not a number"),
        ({"threads": 0}, "threads: 0 is not a whole number from 1 to 1024"),
        ({"threads": 1.5}, "threads: 1.5 is not a whole number"),
        ({"backend": "lsf"}, "backend: 'lsf' is unknown. Backends: local, ray, slurm"),
        ({"workers": 2, "backend": "ray"}, "workers: 2 has no meaning with backend 'ray'. It is for local and slurm"),
        ({"address": "auto"}, "address: 'auto' has no meaning with backend 'local'"),
        ({"gpus": -1.0, "backend": "slurm"}, "gpus: -1.0 is not a number of GPUs"),
    ],
)
def test_a_wrong_request_is_refused(given: dict[str, Any], message: str, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        planned("lora", tmp_path, tiny_bert, **given)


def test_auto_takes_the_cores_and_memory_there_are_where_it_pays(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=10**11)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    work = planned("lora", tmp_path, tiny_bert, seeds=6)
    assert automatic_workers(work) == 1
    monkeypatch.setattr(workers, "_SECONDS", 1.0)
    assert automatic_workers(work) == 6
    assert automatic_workers(replace(work, threads=3)) == 2
    assert automatic_workers(replace(work, threads=9)) == 1
    free = free._replace(available=10**10)
    assert automatic_workers(work) == 2
    free = free._replace(available=10**6)
    assert automatic_workers(work) == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    free = free._replace(available=10**11)
    assert automatic_workers(work) == 1


def test_threads_are_a_share_of_the_cores_whatever_the_number_of_workers(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(workers, "cores", lambda: 8)
    assert [Backend("local").default_threads(arms) for arms in (1, 3, 8, 99)] == [8, 2, 1, 1]
    assert Backend("slurm").default_threads(1) == 1
    given: list[int] = []

    def narrowed(threads: int) -> None:
        given.append(threads)

    monkeypatch.setattr(torch, "set_num_threads", narrowed)
    for count in (1, 4):
        assert planned("lora", tmp_path / str(count), tiny_bert, threads=None, seeds=2, workers=count).threads == 4
    assert given == [4, 4]


def test_a_study_keeps_the_dtype_that_was_faster_when_it_was_created(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = []
    for seconds in ({"float32": 2.0, "bfloat16": 1.0}, {"float32": 1.0, "bfloat16": 2.0}):
        monkeypatch.setattr(precision, "product_seconds", lambda seconds=seconds: seconds)
        work = planned("lora", tmp_path, tiny_bert, dtype="auto")
        request = work.study.read_request()
        found.append((work.dtype, request["dtype"], request["product_seconds"]))
    assert found == [("bfloat16", "bfloat16", {"float32": 2.0, "bfloat16": 1.0})] * 2


def test_by_itself_a_study_stays_in_one_process_where_a_strategy_cannot_travel(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Held(RankPruningStrategy):
        name = "held"
        lock = threading.Lock()

    monkeypatch.setattr(workers, "automatic_workers", lambda work: 2)
    work = planned(["lora", Held], tmp_path, tiny_bert, budget="rank=2,steps=1")
    with Reporter(2) as reporter:
        run_in_processes(work, "auto", reporter)
    assert all(work.folder(arm).result() is not None for arm in work.arms)
    assert "cannot be sent to another process" in caplog.text


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_arrive_as_they_were_sent_and_torn_lines_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    wire, heard = io.StringIO(), Heard()
    sender = EventWriter(wire)
    sender.started("lora", 3, 24)
    sender.step(1, 24, "train", 48)
    sender.finished("lora", 3, {"accuracy": 0.5})
    sender.failed("dora", 3, "no\nluck")
    for line in [*wire.getvalue().splitlines(), '["finished", "lo']:
        forward_event(line, heard)  # type: ignore[arg-type]
    assert heard.events == [
        ("started", "lora", 3, 24),
        ("step", 1, 24, "train", 48),
        ("finished", "lora", 3, {"accuracy": 0.5}),
        ("failed", "dora", 3, "no\nluck"),
    ]


def test_every_arm_ends_once_for_the_reader_however_many_workers_tell(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Reporter(48, enabled=True) as one:
        two = one.new_listener()
        one.started("lora", 0, 24)
        one.step(5, 24, "train", 1152)
        assert one._display.progress.tasks[-1].description == "lora, seed 0: train, ranks 1,152"
        two.skipped("lora", 0, 24)  # it saw the result before the other one told of it
        one.finished("lora", 0, {"accuracy": 0.5})
        two.skipped("lora", 0, 24)
        two.started("dora", 0, 24)
        two.lost(-9)
        one.skipped("dora", 0, 24)
        two.logged("look here")
    said = capsys.readouterr().err
    assert said.count("lora, seed 0: accuracy 0.5000") == 1
    assert "lora, seed 0: done before" not in said
    assert "a worker ended with code -9" in said
    assert said.count("dora, seed 0: done before") == 1
    assert "48/48" in said
    assert caplog.messages == ["look here"]


def test_a_log_file_gets_lines_and_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(24, header="one arm") as reporter:
        reporter.started("lora", 0, 24)
        reporter.step(5, 24, "train", 1152)
        reporter.finished("lora", 0, {"accuracy": 0.5})
    assert capsys.readouterr().err == "one arm\nlora, seed 0: accuracy 0.5000\n" + AFTER_PROGRESS
    with Reporter(24, enabled=False, header="one arm") as reporter:
        reporter.failed("lora", 0, "no luck")
    assert capsys.readouterr().err == ""


def test_a_worker_that_is_lost_is_told_of_without_a_terminal_too(caplog: pytest.LogCaptureFixture) -> None:
    with Reporter(1, enabled=False) as reporter:
        reporter.lost(-9)
    assert "a worker ended with code -9" in caplog.text


# --- workers ----------------------------------------------------------------------------------------------------------

FILED = """
import peftprune

class Filed(peftprune.RankPruningStrategy):
    name = "filed"
"""


def run_in_workers(work: Work, count: int, reporter: Reporter | None = None) -> None:
    """Trains the work in further processes alone, which `run_in_processes` would finish before they have started."""
    packed = pack(work)
    with reporter or Reporter(work.total_steps) as reporter, ExitStack() as stack:
        for thread in [stack.enter_context(_worker(packed, i, work.threads, reporter)) for i in range(count)]:
            thread.join()


def test_results_do_not_depend_on_the_number_of_workers(tiny_bert: Path, tmp_path: Path) -> None:
    class Mine(RankPruningStrategy):
        name = "mine"

        def decide(self, view: StepView) -> PruningPlan:
            if view.step == 2:
                raise ArithmeticError("a fault of mine")
            return PruningPlan()

    (tmp_path / "mine.py").write_text(FILED)
    methods = ["lora", f"{tmp_path}/mine.py:Filed", Mine]
    works = [planned(methods, tmp_path / str(n), tiny_bert, checkpoints=1) for n in range(3)]
    run_in_workers(works[0], 1)
    for work, count in zip(works[1:], (1, 2), strict=True):
        with Reporter(18) as reporter:
            run_in_processes(work, count, reporter)
    for work in works:
        assert [work.folder(arm).result() is not None for arm in work.arms] == [True, True, False]
        error = work.folder(work.arms[2]).error()
        assert error is not None
        assert error["error"] == "ArithmeticError: a fault of mine"
    whole = [{arm.name: left_by(work.folder(arm)) for arm in work.arms[:2]} for work in works]
    assert len(whole[0]) == 2
    assert same(whole[0], whole[1])
    assert same(whole[0], whole[2])


HELPED = """
import helping
import peftprune

class Helped(peftprune.RankPruningStrategy):
    name = "helped"

    def decide(self, view):
        return helping.nothing()
"""


@pytest.mark.slow
def test_workers_import_nothing_from_the_working_directory(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = planned("lora", tmp_path / "study", tiny_bert)
    for name in ("evaluate", "profile", "uuid", "bitsandbytes"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')")
    (tmp_path / "helping.py").write_text("import peftprune\n\ndef nothing():\n    return peftprune.PruningPlan()\n")
    (tmp_path / "helped.py").write_text(HELPED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    with monkeypatch.context() as patch:
        for name in ("helping", "helped"):
            patch.delitem(sys.modules, name, raising=False)
        helped = importlib.import_module("helped").Helped
        works = [work, planned([helped], tmp_path / "study", tiny_bert)]
        work = replace(work, arms=tuple(arm for w in works for arm in w.arms))
        assert str(tmp_path) not in python_path()["PYTHONPATH"].split(os.pathsep)
        run_in_workers(work, 1)
    assert [work.folder(arm).error() for arm in work.arms] == [None, None]
    assert all(work.folder(arm).result() is not None for arm in work.arms)


def test_folders_that_the_user_names_are_searched_by_workers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "more", *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", *sys.path[2:]]))
    found = python_path()["PYTHONPATH"].split(os.pathsep)
    assert found[0] == str(tmp_path / "more")
    assert str(Path(process.__file__).parents[3]) in found
    assert str(tmp_path) not in found
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert python_path()["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)


def test_workers_import_the_peftprune_that_started_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peftprune").mkdir()
    (tmp_path / "peftprune" / "__init__.py").touch()
    root = str(Path(process.__file__).parents[3])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if p != root)])
    found = python_path()["PYTHONPATH"].split(os.pathsep)
    assert found.index(root) < found.index(str(tmp_path))
    assert not [m for m in process._not_importable() if m.__name__.partition(".")[0] == "peftprune"]


def test_modules_stay_importable_where_the_environment_lies_above_them(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(process.__file__).parents[3]
    monkeypatch.setattr(sys, "prefix", str(root.parent))
    monkeypatch.setattr(sys, "base_prefix", str(root.parent))
    assert str(root) in python_path()["PYTHONPATH"].split(os.pathsep)


def test_an_interrupt_ends_the_workers() -> None:
    found: list[psutil.Process] = []

    def interrupted() -> None:
        with _worker(b"", 0, 1, Reporter(1)):
            found.extend(c for c in psutil.Process().children() if process.__name__ in c.cmdline())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (child,) = found
    assert not child.is_running()


def test_what_cannot_be_sent_to_a_worker_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    class Holding(RankPruningStrategy):
        name = "holding"
        lock = threading.Lock()

    with pytest.raises(UsageError, match=r"methods: 'holding' cannot be sent .*train with workers=1"):
        pack(planned([Holding], tmp_path, tiny_bert))


def test_a_model_that_is_loaded_does_not_travel(tiny_bert: Path, tmp_path: Path) -> None:
    work = planned("lora", tmp_path, tiny_bert)
    assert work.setups["tiny"].setup is work.setups["tiny"].setup
    assert len(pack(work)) < (tiny_bert / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_four_workers_of_which_one_is_killed_give_what_one_gives(tiny_bert: Path, tmp_path: Path) -> None:
    methods, settings = "lora,lorpa(initial_rank=8),shuffled,lora-drop(sample=0.25,probe_passes=2)", {"checkpoints": 6}
    alone, four = (planned(methods, tmp_path / n, tiny_bert, budget="rank=2,steps=24", **settings) for n in "ab")
    alone.run(Heard())
    killed: list[int] = []

    class Killing(Reporter):
        def step(self, done: int, total: int, phase: str, ranks: int) -> None:
            if done > 4 and not killed:
                victims = [c for c in psutil.Process().children() if process.__name__ in c.cmdline()]
                killed.append(victims[0].pid)
                os.kill(victims[0].pid, signal.SIGKILL)

    run_in_workers(four, 4, Killing(96))
    assert killed
    assert same(left_in(tmp_path / "a"), left_in(tmp_path / "b"))


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tiny_bert: Path, tmp_path: Path) -> None:
    work = planned("lora,dora", tmp_path / "study", tiny_bert, budget="rank=2,steps=20000")
    (tmp_path / "work.pkl").write_bytes(pack(work))
    code = """
import sys
from pathlib import Path
from peftprune.study.progress import Reporter
from peftprune.study.execution.process import unpack
from peftprune.study.execution.local import run_in_processes
run_in_processes(unpack(Path(sys.argv[1]).read_bytes()), 2, Reporter(1))
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "work.pkl")]) as parent:
        until = time.monotonic() + 300
        while not all(work.folder(arm).held for arm in work.arms):
            assert time.monotonic() < until
            time.sleep(0.5)
        workers = psutil.Process(parent.pid).children()
        assert len(workers) == 1
        parent.kill()
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not any(work.folder(arm).held for arm in work.arms)
