"""Slurm: what is submitted, and what an array's task does."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from peftprune.cli.app import app
from peftprune.errors import RunError
from peftprune.study.execution import work as queue
from peftprune.study.execution.slurm import submit, write_job
from peftprune.study.store import ArmFolder
from tests.helpers import same
from tests.killing import Heard, left_in, planned

SBATCH = """#!/bin/bash
# Stands in for Slurm: runs every task of the array, one after another.
script=$1
for index in $(grep -oP '(?<=--array=).*' "$script" | tr , ' '); do
    SLURM_ARRAY_TASK_ID=$index bash "$script" > "$(dirname "$script")/$index.log" 2>&1
done
echo "Submitted batch job 7"
"""


def fake_sbatch(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "sbatch").write_text(text)
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_script_asks_for_what_the_arms_need(tiny_bert: Path, tmp_path: Path) -> None:
    work = replace(planned("lora,shuffled,lora-drop", tmp_path / "a study", tiny_bert, backend="slurm"), threads=3)
    script = write_job(work, tasks="auto", gpus=0.5, options="--partition=gpu --time=1:00:00")
    assert script is not None
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--array=0,1,2", "--cpus-per-task=3", "--gpus-per-task=0.5", "--ntasks=1", "--requeue"} <= options
    assert {"--partition=gpu", "--time=1:00:00"} <= options
    assert f"run-arm '{script.parent}/work.pkl' --index \"$SLURM_ARRAY_TASK_ID\"" in lines[-1]
    assert f"cd {Path.cwd()}" in lines
    assert next(line for line in lines if "PYTHONPATH=" in line).endswith(" PYTHONSAFEPATH=1")
    subprocess.run(["bash", "-n", str(script)], check=True)
    other = write_job(work, tasks=2, gpus=0, options="")
    assert other is not None
    text = other.read_text()
    assert "--array=0-1\n" in text
    assert "--gpus" not in text
    assert not text.rstrip().endswith('"$SLURM_ARRAY_TASK_ID"')


def test_without_sbatch_the_command_is_named_and_a_refusal_is_an_error(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = planned("lora", tmp_path / "study", tiny_bert, backend="slurm")
    monkeypatch.setenv("PATH", "/nowhere")
    submit(work, tasks="auto", gpus=0, options="")
    (script,) = tmp_path.rglob("array.sh")
    assert f"sbatch is not installed here. Where it is, run: sbatch {script}" in capsys.readouterr().err
    monkeypatch.setenv("PATH", os.defpath)
    fake_sbatch(tmp_path / "bin", "#!/bin/bash\necho 'invalid partition' >&2\nexit 1\n", monkeypatch)
    with pytest.raises(RunError, match=r"sbatch: rejected .*array\.sh \(invalid partition\)\. Correct --sbatch"):
        submit(work, tasks="auto", gpus=0, options="")


def test_run_arm_trains_its_arm_and_what_that_depends_on(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = planned("lora,dora", tmp_path, tiny_bert, backend="slurm", budget="rank=2,steps=2")
    script = write_job(work, tasks="auto", gpus=0, options="")
    assert script is not None
    file = script.parent / "work.pkl"
    refused = run("run-arm", file, "--index", 2)
    assert refused.exit_code == 2
    assert "index: 2 is not an arm of the study. Give 0 to 1" in refused.stderr
    assert "Name a work.pkl" in run("run-arm", tmp_path / "nothing.pkl").stderr
    (tmp_path / "other.pkl").write_text("no pickle")
    other = run("run-arm", tmp_path / "other.pkl")
    assert other.exit_code == 2
    assert "cannot be read (UnpicklingError" in other.stderr
    (work.folder(work.ordered[0]).path).mkdir(parents=True)
    (work.folder(work.ordered[0]).path / "config.json").touch()
    with work.folder(work.ordered[1]).lock():
        states = json.loads(run("status", tmp_path, "--json").stdout)["arms"]
        assert [row["state"] for row in states] == ["interrupted", "training"]
    done = run("run-arm", file, "--index", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == ["dora, seed 0: done"]
    assert [work.folder(arm).result() is not None for arm in work.ordered] == [False, True]

    def broken(plan: Any, inputs: Any, seed: int, folder: ArmFolder, config: Any, *rest: Any) -> Any:
        raise RunError("out of luck")

    monkeypatch.setattr(queue, "run_arm", broken)
    failed = run("run-arm", file)
    assert failed.exit_code == 1
    assert failed.stdout.splitlines() == ["lora, seed 0: failed: out of luck", "dora, seed 0: done"]
    shown = run("status", tmp_path)
    assert "1 done, 0 training, 0 interrupted, 1 failed, 0 waiting" in shown.stdout
    assert "out of luck" in shown.stdout


def test_another_machine_than_the_planned_one_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    work = planned("lora", tmp_path, tiny_bert)
    with pytest.raises(RunError, match=r"device: .* here .* planned for 'Abacus'\. Plan it on a machine like"):
        replace(work, device="Abacus").check_here()
    with pytest.raises(RunError, match=r"versions: torch .* for 1\.0 here .* Install the same ones everywhere"):
        replace(work, versions={**work.versions, "torch": "1.0"}).check_here()


@pytest.mark.slow
def test_an_array_job_gives_what_one_process_gives(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_sbatch(tmp_path / "bin", SBATCH, monkeypatch)
    methods = "lora,shuffled,lora-drop(sample=0.25,probe_passes=2)"
    works = [planned(methods, tmp_path / n, tiny_bert, budget="rank=2,steps=24") for n in "ab"]
    works[0].run(Heard())
    submit(works[1], tasks="auto", gpus=0, options="")
    assert same(left_in(tmp_path / "a"), left_in(tmp_path / "b"))
    assert write_job(works[1], tasks="auto", gpus=0, options="") is None


def test_a_tuned_study_says_to_type_the_command_again(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[object] = []
    monkeypatch.setattr("peftprune.study.execution.slurm.submit", lambda work, **_: submitted.append(work))
    settings = "--budget rank=2,steps=2 --max-train-samples 400 --max-eval-samples 20 --methods lora --max-length 16"
    done = run(
        *["compare", "--output-dir", tmp_path / "s", "--model", tiny_bert, "--backend", "slurm", *settings.split()],
        *["--tune", "learning_rate=1e-3,1e-2"],
    )
    assert done.exit_code == 0, done.output
    assert len(submitted) == 1
    assert f"The trials are submitted. Progress: peftprune status {tmp_path}/s/tuning." in done.stdout
    assert "type the same command again" in done.stdout
