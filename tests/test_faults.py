"""Full disks, folders that cannot be written, faults in strategies: what is finished stays, and the cure is named."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from peftprune.analysis.frames import Frames
from peftprune.cli.app import app
from peftprune.comparison import Comparison
from peftprune.errors import RunError
from peftprune.report.html.explorer import explorer
from peftprune.report.html.run_details import method_entries
from peftprune.study import disk
from peftprune.study.disk import require_space, storage_error
from peftprune.study.execution import work as queue
from peftprune.study.execution.work import Work
from peftprune.study.store import ArmFolder
from tests.helpers import make_arm
from tests.killing import Heard, planned
from tests.stored import store
from tests.strategies import Broken


def failing(path: str, number: int) -> Callable[..., Any]:
    """An `os.replace` that fails where the destination holds a name."""
    replace = os.replace

    def patched(source: Any, target: Any) -> None:
        if path in str(target):
            raise OSError(number, os.strerror(number))
        replace(source, target)

    return patched


CASES = {
    "full at a checkpoint": ("checkpoint-4", errno.ENOSPC, "no space is left on the disk. Free some, and the same"),
    "full at the end": ("predictions.parquet", errno.ENOSPC, "no space is left on the disk. Free some"),
    "quota": ("history.jsonl", errno.EDQUOT, "no space is left"),
    "read-only": ("checkpoint-4", errno.EROFS, r"cannot be written \(.*Read-only.*\)\. Make it writable, and the same"),
    "not ours": ("config.json", errno.EACCES, "cannot be written .* Make it writable"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_arm_that_cannot_be_stored_fails_with_the_cure_and_is_done_by_the_next_run(
    case: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, number, message = CASES[case]
    arm = make_arm("lora", tmp_path / "arms" / "lora-s0", tiny_bert, budget="rank=2,steps=4", checkpoints=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing(where, number))
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            arm.run()
    told = storage_error(caught.value, arm.folder.path)
    assert told is not None
    assert storage_error(RuntimeError("another"), arm.folder.path) is None
    with pytest.raises(RunError, match=rf"lora-s0: .*{message}"):
        raise told
    assert not list(tmp_path.rglob(".*.tmp"))
    assert not list(tmp_path.rglob("incomplete"))
    steps: list[int] = []
    again = make_arm("lora", arm.folder.path, tiny_bert, budget="rank=2,steps=4", checkpoints=2)
    again.run(progress=lambda done, total, phase: steps.append(done))
    assert steps == {"config.json": [1, 2, 3, 4], "checkpoint-4": [3, 4]}.get(where, [])
    assert again.folder.result() is not None


def study_with(error: Exception, work: Work, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """Run a study whose second arm fails before it trains, the first being done."""
    heard = Heard()

    def run(plan: Any, inputs: Any, seed: int, folder: ArmFolder, config: Any, *rest: Any) -> Any:
        raise error

    monkeypatch.setattr(queue, "run_arm", run)
    work.run(heard)
    return heard


RAISED = {
    "I/O error: No space left on device (os error 28)": "no space is left on the disk. Free some, and the same command",
    "PytorchStreamWriter failed writing file data/0: file write failed": "Is the disk full",
    "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0": "could not be written to its end. Is",
    "basic_ios::clear: iostream error": "MB are free now)? Free some, and the same command resumes",
}


@pytest.mark.parametrize("raised", RAISED)
def test_what_libraries_raise_on_a_full_disk_is_told_in_words(
    raised: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = planned("lora", tmp_path, tiny_bert)
    heard = study_with(RuntimeError(raised), work, monkeypatch)
    assert heard.names == ["started", "failed"]
    error = work.folder(work.arms[0]).error()
    assert error is not None
    assert RAISED[raised] in error["error"]
    assert raised in error["traceback"]


def test_where_not_even_the_failure_can_be_stored_the_study_ends_and_says_why(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = planned("lora,dora", tmp_path, tiny_bert)
    monkeypatch.setattr(os, "replace", failing("error.json", errno.ENOSPC))
    with pytest.raises(RunError, match=r"no space is left on the disk\. Free some"):
        study_with(ValueError("a fault"), work, monkeypatch)
    assert not work.folder(work.arms[0]).held


def test_what_does_not_fit_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    free = 30_000_000

    def usage(path: Any) -> Any:
        return shutil._ntuple_diskusage(10**9, 10**9 - free, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(disk.shutil, "disk_usage", usage)
    # A million numbers: 12 MB a checkpoint, 4 MB for the adapter, and 0.1 MB of records with each.
    require_space(tmp_path, model, 2)
    refused = r"30\.0 MB are free on the disk, and the arm needs about 40\.4 MB\. Free some, lower checkpoints"
    with pytest.raises(RunError, match=refused):
        require_space(tmp_path, model, 3)
    require_space(tmp_path, model.requires_grad_(False), 200)


def test_an_arm_without_room_fails_before_its_first_step(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_free", lambda folder: 1000)
    work, heard = planned("lora", tmp_path, tiny_bert), Heard()
    work.run(heard)
    assert [e[0] for e in heard.events] == ["started", "failed"]
    assert "0.0 MB are free" in heard.events[-1][-1]


def test_a_finished_arm_is_untouched_by_the_failure_of_another(tiny_bert: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"budget": "rank=2,steps=4"}
    first, heard = planned("lora", tmp_path, tiny_bert, **options), Heard()
    first.run(heard)
    folder = first.folder(first.arms[0])
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.path.rglob("*") if p.is_file()}
    planned(["lora", Broken], tmp_path, tiny_bert, **options).run(heard)
    assert heard.names == ["started", "finished", "skipped", "started", "failed"]
    assert "step 4" in heard.events[-1][-1]
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before


# --- stored studies ---------------------------------------------------------------------------------------------------

FILES = ("config.json", "result.json", "allocation.jsonl", "history.jsonl", "predictions.parquet")
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "binary": lambda data: b"\xff\x00\xfe" + data,
    "cut": lambda data: data[: len(data) // 2],
    "number": lambda data: b"7\n",
    "list": lambda data: b"[1]\n",
    "keys": lambda data: re.sub(rb'"(metrics|sites|step|options)": ', rb'"\1_": ', data),
    "values": lambda data: re.sub(rb'"(ledger|sites|options)": \{', rb'"\1": 3, "_": {', data),
    "columns": lambda data: pd.DataFrame({"split": ["dev"]}).to_parquet(),
}


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("readable"), methods=("plain", "cut"), layers=1).path


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_one_arm_is_named_and_the_others_are_shown(
    name: str, damage: str, readable: Path, tmp_path: Path
) -> None:
    study = Comparison.load(shutil.copytree(readable, tmp_path / "study"))
    file = study.arm("cut", 1).path / name
    before = file.read_bytes()
    file.write_bytes(DAMAGES[damage](before))
    damaged = file.read_bytes() != before
    states = json.loads(command("status", study.path, "--json"))["arms"]
    assert len(study.table()) == 2
    assert [s["state"] for s in states].count("done") == 4 - (damaged and name == "result.json")
    if damaged and name == "result.json":
        assert str(file) in study.failures["cut, seed 1"]
    # What earlier versions did not store may be missing from a configuration.
    reported = damaged and not (name == "config.json" and damage == "keys")
    frames = Frames(study, whole=True)
    for view in ("allocation", "ledger", "trace", "history", "costs", "mcnemar", "frontier", "stability"):
        assert not getattr(frames, view).empty
    assert explorer(frames) is not None
    assert len(method_entries(frames.study)) == 2
    assert frames.table["seeds"].tolist() == [2, 2 - reported]
    assert [str(file) in why for why in frames.study.failures.values()] == [True] * reported


def test_a_read_only_study_is_shown_and_stays_as_it_is(
    readable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = shutil.copytree(readable, tmp_path / "study")
    for name in ("result.json", ".lock"):
        arm = next(study.glob("arms/cut-s1-*"))
        (arm / name).unlink() if name == "result.json" else (arm / name).touch()

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (study, *study.rglob("*"))}

    def refusing(write: Callable[..., Any], is_write: Callable[..., bool]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            if isinstance(path, str | Path) and str(path).startswith(str(study)) and is_write(*rest, **named):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return write(path, *rest, **named)

        return call

    before = files()
    monkeypatch.setattr("peftprune.analysis.differences._RESAMPLES", 9)
    monkeypatch.setattr(os, "mkdir", refusing(os.mkdir, lambda *_, **__: True))
    monkeypatch.setattr(os, "open", refusing(os.open, lambda flags, *_, **__: bool(flags & (os.O_RDWR | os.O_CREAT))))
    monkeypatch.setattr(io, "open", refusing(io.open, lambda mode="r", *_, **__: mode not in ("r", "rb")))
    assert "3 done, 0 training, 1 interrupted, 0 failed, 0 waiting" in command("status", study)
    command("report", study, "--format", "json", "--out", tmp_path / "report.json")
    refused = CliRunner().invoke(app, ["report", str(study), "--format", "csv", "--out", str(study / "report.html")])
    assert refused.exit_code == 2
    assert (
        "report.html' cannot be written (Read-only file system). Name a file in a folder you may write"
        in refused.stderr
    )
    assert files() == before
