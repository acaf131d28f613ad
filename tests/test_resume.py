"""Killed at any moment, an arm goes on and ends with the bits of one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import peftprune.study.arm
from peftprune.study.execution.process import pack
from peftprune.study.store import ArmFolder
from peftprune.training.checkpoints import MANIFEST_FILE, checkpoints_in, is_complete
from tests.helpers import make_arm, same
from tests.killing import left_by, left_in, planned
from tests.test_contract import SETTINGS

# --- a kill at every write boundary -----------------------------------------------------------------------------------

WRITES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.truncate"}
_watching: list[Callable[[str, tuple[Any, ...]], None]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    # A hook stays until the process ends; it rests where nobody watches.
    if _watching and (event in WRITES or event == "open"):
        watch = _watching.pop()
        try:
            watch(event, arguments)
        finally:
            _watching.append(watch)


@contextmanager
def at_every_write(folder: Path, look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before every change of a folder's files that Python knows of, and around every sync."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        path, mode = arguments[0], arguments[1] if len(arguments) > 1 else None
        if event == "open" and not (isinstance(mode, str) and set(mode) & set("wax+")):
            return
        if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)):
            look()

    sync = os.fsync

    def watched_sync(handle: int) -> None:
        look()
        sync(handle)
        look()

    if not getattr(_audit, "installed", False):
        sys.addaudithook(_audit)
        _audit.installed = True  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", watched_sync)
        _watching.append(watch)
        try:
            yield
        finally:
            _watching.clear()


def state(folder: ArmFolder) -> tuple[Any, ...]:
    """What of an arm's files a resumed run may see: its checkpoints, whole or not, and what is finished."""
    checkpoints = tuple((path.name, is_complete(path)) for path in checkpoints_in(folder.checkpoints))
    aside = (folder.checkpoints / "incomplete").exists()
    finished = tuple(sorted(p.name for p in folder.path.iterdir() if p.is_file() and not p.name.startswith(".")))
    return checkpoints, aside, folder.adapter.exists(), finished, folder.result() is not None


def progress_of(seen: tuple[Any, ...]) -> int:
    """Steps that need not be trained again; more than any number of steps when the arm is done."""
    checkpoints, *_, done = seen
    whole = [int(name.rpartition("-")[2]) for name, complete in checkpoints if complete]
    return 10**6 if done else max(whole, default=0)


def kill_everywhere(method: str, tmp_path: Path, model: Path, *, resume_all: bool, **settings: Any) -> None:
    """What a kill leaves at each boundary, and that it is gone on with from each state that differs."""
    copies: list[Path] = []
    arm = make_arm(method, tmp_path / "arm", model, **settings)
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        if not arm.folder.path.exists():
            return
        found = state(arm.folder)
        if resume_all or found not in seen:
            copies.append(tmp_path / f"killed-{len(copies)}")
            shutil.copytree(arm.folder.path, copies[-1])
        seen.append(found)

    with at_every_write(arm.folder.path, look):
        arm.run()
    expected = left_by(arm.folder)
    assert len(seen) > 60
    assert len(copies) > 8
    progress = [progress_of(found) for found in seen]
    assert progress == sorted(progress), "a kill would lose a checkpoint that was whole before"
    assert len(set(progress)) == settings["checkpoints"] + 2
    for copy in copies:
        again = make_arm(method, copy, model, **settings)
        if again.folder.result() is None:
            again.run()
        again.folder.tidy()
        assert same(left_by(again.folder), expected), copy.name
        assert not again.folder.checkpoints.exists()


def test_killed_at_any_write_an_arm_ends_with_the_same_bits(tiny_bert: Path, tmp_path: Path) -> None:
    options = {"budget": "rank=2,steps=4", "checkpoints": 2}
    kill_everywhere("lorpa(initial_rank=4)", tmp_path, tiny_bert, resume_all=False, **options)


@pytest.mark.parametrize(("steps", "checkpoints"), [(690, 5), (24, 5), (101, 100), (1, 5)])
def test_a_checkpoint_is_written_only_where_the_loss_is_logged(
    steps: int, checkpoints: int, tiny_bert: Path, tmp_path: Path
) -> None:
    arm = make_arm("lora", tmp_path, tiny_bert, budget=f"rank=2,steps={steps}", checkpoints=checkpoints)
    arguments = peftprune.study.arm._arguments(arm.plan, arm.inputs, 0, tmp_path, {})
    assert arguments.save_steps % arguments.logging_steps == 0
    assert steps / (checkpoints + 1) - 1 < arguments.save_steps < steps / checkpoints + arguments.logging_steps + 1


METHODS = {
    "lorpa": "lorpa(initial_rank=8)",
    "prilora": "prilora(prune_every=5)",
    "lora-drop": "lora-drop(sample=0.25,probe_passes=2)",
    "adalora": "adalora(every=3,warmup=0.15)",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_any_write_every_method_ends_with_the_same_bits(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    kill_everywhere(METHODS[method], tmp_path, tiny_bert, resume_all=True, budget="rank=2,steps=12", checkpoints=3)


# --- real kills -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_that_is_killed_over_and_over_ends_as_if_left_alone(tiny_bert: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"budget": "rank=3,steps=24", "checkpoints": 8}
    work = planned(list(METHODS.values()), tmp_path / "killed", tiny_bert, **settings)
    wanted = {(arm.name, phase.name) for arm in work.arms for phase in arm.plan.phases}
    (tmp_path / "work.pkl").write_bytes(pack(work))
    rng, killed_in, kills = random.Random(0), set[tuple[str, str]](), 0
    command = [sys.executable, "-m", "tests.killing", str(tmp_path / "work.pkl")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        code = None
        while code != 0:
            server.stdin.write("go\n")
            server.stdin.flush()
            child, arm, doomed = 0, "", False
            for line in server.stdout:
                try:
                    event, *values = json.loads(line)
                except ValueError:
                    continue  # cut off by the kill
                if event == "ended":
                    code = values[0]
                    break
                if event == "child":
                    child = values[0]
                elif event == "started":
                    arm = values[0]
                elif event == "step" and not doomed:
                    here = arm, values[2]
                    if here not in killed_in or (kills < 30 and rng.random() < 0.25):
                        time.sleep(rng.uniform(0, 0.1))
                        os.kill(child, signal.SIGKILL)
                        killed_in.add(here)
                        kills, doomed = kills + 1, True
        server.stdin.close()
    assert kills >= 20
    assert killed_in == wanted
    undisturbed = planned(list(METHODS.values()), tmp_path / "undisturbed", tiny_bert, **settings)
    (tmp_path / "other.pkl").write_bytes(pack(undisturbed))
    subprocess.run([*command[:-1], str(tmp_path / "other.pkl")], input="go\n", text=True, check=True)
    assert same(left_in(tmp_path / "killed"), left_in(tmp_path / "undisturbed"))


KILLS = 100


class Server:
    """A process that forks children which train a study, one after another; see `tests.killing.serve`."""

    def __init__(self, work: Path, heard: queue.Queue[tuple[Server, str, list[Any]]]) -> None:
        command = [sys.executable, "-m", "tests.killing", str(work)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.child = 0
        self._heard = heard
        threading.Thread(target=self._listen, daemon=True).start()
        self.fork()

    def fork(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                event, *values = json.loads(line)
            except ValueError:
                continue  # cut off by the kill
            self._heard.put((self, event, values))


def train_and_kill(works: list[Path], kills: int, rng: random.Random) -> int:
    """Trains a study in one process per packed work, kills children at random moments, and returns their number."""
    heard: queue.Queue[tuple[Server, str, list[Any]]] = queue.Queue()
    servers, killed, until = [Server(work, heard) for work in works], 0, rng.randrange(30)
    left = set(servers)
    while left:
        server, event, values = heard.get(timeout=300)
        if event == "child":
            server.child = values[0]
        elif event == "ended":
            server.child = 0
            if values[0] == 0:
                left.remove(server)
            else:
                assert values[0] == -signal.SIGKILL
                server.fork()
        elif killed < kills and until == 0:
            victim = rng.choice([s.child for s in servers if s.child])
            time.sleep(rng.uniform(0, 0.1))
            # It may have ended in the meantime, but its server has not forgotten it before `ended` is read.
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed += 1
            until = rng.randrange(30)
        else:
            until = max(0, until - 1)
    for server in servers:
        server.process.communicate()
    return killed


@pytest.mark.slow
def test_a_hundred_kills_among_three_processes_change_no_bit_of_any_method(tiny_bert: Path, tmp_path: Path) -> None:
    methods = [f"{name}({','.join(f'{k}={v!r}' for k, v in row.items())})" for name, row in SETTINGS.items()]
    settings: dict[str, Any] = {"budget": "rank=4,steps=24", "checkpoints": 8}

    def packed(study: str, name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(pack(planned(methods, tmp_path / study, tiny_bert, **settings)))
        return path

    assert train_and_kill([packed("undisturbed", "undisturbed.pkl")], 0, random.Random(0)) == 0
    expected = left_in(tmp_path / "undisturbed")
    assert len(expected) == len(methods)
    rng, kills, studies = random.Random(0), 0, 0
    while kills < KILLS:
        # Two workers of one command, and the same command typed again elsewhere.
        study, inside, outside = f"study-{studies}", f"inside-{studies}.pkl", f"outside-{studies}.pkl"
        works = [packed(study, inside)] * 2 + [packed(study, outside)]
        done = train_and_kill(works, KILLS - kills, rng)
        assert done
        kills, studies = kills + done, studies + 1
        assert same(left_in(tmp_path / study), expected)
    print(f"{kills} kills in {studies} studies of {len(methods)} methods: every result is equal to the bit")


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def delete(folder: Path) -> None:
    (folder / "optimizer.pt").unlink()


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text("{}")


@pytest.mark.parametrize("damage", [flip, delete, empty_manifest])
def test_a_damaged_checkpoint_is_named_and_gives_way_to_the_one_before(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 6, 9):
        folder = tmp_path / "lora-s0-abc" / "checkpoint" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", peftprune.training.checkpoints.STATE_FILE):
            (folder / name).write_bytes(name.encode())
        peftprune.training.checkpoints.write_manifest(folder)
    checkpoints = tmp_path / "lora-s0-abc" / "checkpoint"
    (checkpoints / "checkpoint-old").mkdir()
    damage(checkpoints / "checkpoint-9")
    found = peftprune.training.checkpoints.usable_checkpoint(checkpoints)
    assert found == checkpoints / "checkpoint-6"
    (message,) = caplog.messages
    assert "lora-s0-abc: checkpoint-9 is damaged" in message
    assert "resumes from the newest complete checkpoint" in message
    # Else the next checkpoint, an earlier one, would be the oldest and deleted.
    assert [p.name for p in checkpoints_in(checkpoints)] == ["checkpoint-6", "checkpoint-3"]
