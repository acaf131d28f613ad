"""A study that an earlier version stored is read, drawn, gone on with and exported as if this version had stored it.

`tests/data/make_stored_study.py` stored it once, with the version before the packages were regrouped; it must stay as
it is. Six of its arms are finished, one was killed in mid training, one failed, and two were not begun. `expected.json`
holds what that version read from it then, and what it read after it had gone on to the end.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
import typer
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer
from typer.testing import CliRunner

import peftprune
from peftprune.analysis.status import minutes_left
from peftprune.cli.app import app
from tests.data.make_stored_study import GONE_ON, METHODS, OPTIONS, READ, values

SETUP = "peftprune.study.task_setup"
"""The module in which a study looks up the versions of the packages when it is planned."""
MODELS = "peftprune.models.load"
"""The module in which a model that is loaded gets its fingerprint."""

STORED = Path(__file__).parent / "data" / "stored_study"
EXPECTED = json.loads((STORED / "expected.json").read_text())
FINISHED = {
    "lora-drop-s0-581319be6f",
    "lora-s0-3cd43b2380",
    "lora-s1-d225d36768",
    "lorpa-s0-6ce4d73f80",
    "lorpa-s1-198ea9f155",
    "prilora-s0-11d925ef0d",
}
INTERRUPTED = "prilora-s1-0c6b08a5f8"
FAILED = "listed-s0-bffce0d232"
WAITING = {"lora-drop-s1-2f4b1b872c", "listed-s1-6b236b0ae0"}
FAILURE = "FileNotFoundError: [Errno 2] No such file or directory: 'keep.json'"
RESAMPLED = {"low", "high", "p", "p_holm", "detectable"}
"""Columns that a bootstrap decides, whose random numbers numpy may change."""
FAR_OUT = {"low_holm", "high_holm", "seeds_needed"}
"""Those of them that the last few replicates decide."""
ADDED = ["learned", "drift"]
"""Columns that came later."""
WORDS = {"verdict", "reason"}
"""Columns of sentences that this version writes itself, and may write in other words."""


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the study, its model and its data, which is the working directory; device and packages as they were."""
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    versions = json.loads((folder / "study" / "study.json").read_text())["versions"]
    monkeypatch.setattr(f"{SETUP}.package_versions", lambda: dict(versions))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if transformers.__version__ != versions["transformers"]:
        # Part of the fingerprint is how transformers writes a configuration, which other versions may do differently.
        monkeypatch.setattr(f"{MODELS}._fingerprint", lambda model: config(INTERRUPTED)["model"])
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Filled while arms are trained: the name of an arm's folder to that of the checkpoint from which it goes on."""
    found: dict[str, str | None] = {}
    train = Trainer.train

    def watched(self: Trainer, resume_from_checkpoint: str | None = None, **rest: Any) -> Any:
        checkpoint = None if resume_from_checkpoint is None else Path(resume_from_checkpoint).name
        found[Path(str(self.args.output_dir)).parent.name] = checkpoint
        return train(self, resume_from_checkpoint=resume_from_checkpoint, **rest)

    monkeypatch.setattr(Trainer, "train", watched)
    return found


def command(*words: str) -> str:
    """What a command prints that ends well."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def config(arm: str) -> dict[str, Any]:
    """What the hash of a stored arm was made of."""
    return json.loads((STORED / "study" / "arms" / arm / "config.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def weights(arm: Path) -> dict[str, Tensor]:
    return load_file(arm / "adapter" / "adapter_model.safetensors")


def logits(arm: Path) -> Tensor:
    """(examples, classes), in the order of the held-out file."""
    rows = pd.read_parquet(arm / "predictions.parquet")["logits"]
    return torch.tensor([list(row) for row in rows], dtype=torch.float32)


def assert_reads(frame: pd.DataFrame, expected: dict[str, Any], **tolerance: float) -> None:
    """Equal but for the last digits of numbers, and for the wording of sentences."""
    found = values(frame.drop(columns=ADDED, errors="ignore"))
    assert found["columns"] == expected["columns"]
    assert len(found["rows"]) == len(expected["rows"])
    for row, before in zip(found["rows"], expected["rows"], strict=True):
        for name, value, wanted in zip(expected["columns"], row, before, strict=True):
            if name in WORDS:
                assert value, (name, row)
                continue
            near = {"abs": 0.05} if name in RESAMPLED else {"rel": 0.25, "abs": 0.05} if name in FAR_OUT else tolerance
            assert value == (pytest.approx(wanted, **near) if isinstance(wanted, float) else wanted), (name, row)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", READ)
def test_every_frame_reads_as_it_did(view: str, stored: Path) -> None:
    assert_reads(getattr(peftprune.Comparison.load("study"), view)(), EXPECTED["read"][view])


def test_its_results_stand_here_too(stored: Path) -> None:
    """The most important numbers in plain sight."""
    found = peftprune.Comparison.load("study")
    assert found.methods == ["lora", "lorpa", "prilora", "lora-drop", "listed"]
    assert found.primary == {"verdicts": "accuracy"}
    assert found.failures == {"listed, seed 0": FAILURE}
    table = found.table().set_index("method")
    assert table["accuracy_mean"].round(3).tolist()[:4] == [0.575, 0.625, 0.5, 0.7]
    assert table["seeds"].tolist() == [2, 2, 1, 1, 0]
    assert table["peak_params"].tolist()[:4] == [512, 2048, 512, 512]
    assert table["nonzero_params"].tolist()[:4] == [512, 512, 384, 512]
    ranks = found.allocation().query("seed == 0").groupby("method", sort=False)["rank"].agg(list).to_dict()
    assert ranks == {"lora": [2, 2, 2, 2], "lorpa": [2, 2, 2, 2], "prilora": [1, 1, 3, 3], "lora-drop": [3, 3, 3, 2]}


def test_its_status_names_what_was_cut_off_and_what_failed(stored: Path) -> None:
    arms = json.loads(command("status", "study", "--json"))["arms"]
    states = {f"{a['method']}-s{a['seed']}": (a["state"], a["step"], a["error"]) for a in arms}
    finished = {name.rpartition("-")[0]: ("done", None, None) for name in FINISHED}
    waiting = {name.rpartition("-")[0]: ("waiting", None, None) for name in WAITING}
    others = {"prilora-s1": ("interrupted", 6, None), "listed-s0": ("failed", 6, FAILURE)}
    assert states == finished | waiting | others


def test_its_status_is_watched_and_shown_again_only_when_it_changes(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            (stored / "study" / "arms" / FAILED / "error.json").unlink()
        if len(looks) == 3:
            raise typer.Exit

    monkeypatch.setattr("time.sleep", sleep)
    shown = command("status", "study", "--watch")
    assert shown.count("6 done, 0 training, 1 interrupted, 1 failed, 2 waiting") == 1
    assert shown.count("6 done, 0 training, 2 interrupted, 0 failed, 2 waiting") == 1
    assert "Best mean: " in shown
    assert "prilora" not in shown.partition("Arms\n")[2]


def test_the_status_of_a_search_is_that_of_its_trials(stored: Path) -> None:
    shutil.copytree(stored / "study", stored / "search" / "tuning")
    assert command("status", "search") == command("status", "study")


def test_the_time_left_follows_from_finished_arms(stored: Path) -> None:
    study = peftprune.Comparison.load("study")
    seconds = [result["ledger"]["seconds"] for *_, result in study.finished()]
    states = [{"state": state} for state in ("done", "training", "training", "waiting", "interrupted", "failed")]
    assert minutes_left(study, states) == pytest.approx(1.5 * sum(seconds) / len(seconds) / 60)
    assert minutes_left(study, states[3:]) is None


def test_its_report_and_its_ranks_are_drawn(stored: Path, tmp_path: Path) -> None:
    command("report", "study", "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert all(label in page for label in ("lorpa", "prilora", "lora-drop", "listed", "keep.json"))
    command("plot", "study", "--kind", "ranks", "--out", str(tmp_path / "ranks.png"))
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


# --- going on ---------------------------------------------------------------------------------------------------------


def test_the_same_command_trains_only_what_is_left(stored: Path, trained: dict[str, str | None]) -> None:
    """Finished arms stay untouched; the killed and the failed one go on from their checkpoints and keep their hash."""
    arms = stored / "study" / "arms"
    before = {name: contents(arms / name) for name in FINISHED}
    asked = json.loads((stored / "study" / "study.json").read_text())
    logged = json.loads((arms / INTERRUPTED / "checkpoint" / "checkpoint-6" / "trainer_state.json").read_text())
    # What the failed arm lacked.
    (stored / "keep.json").write_text("[0, 3]")
    command("compare", *(part for name, value in OPTIONS.items() for part in (f"--{name}", value)))
    assert trained == dict.fromkeys(WAITING) | {INTERRUPTED: "checkpoint-6", FAILED: "checkpoint-6"}
    assert {name: contents(arms / name) for name in FINISHED} == before
    assert {p.name for p in arms.iterdir()} == FINISHED | WAITING | {INTERRUPTED, FAILED}
    # The killed process left one.
    assert not list((stored / "study").glob(".at-work-*"))
    # The machine is another. Earlier versions did not store the place, nor what is selected.
    now = json.loads((stored / "study" / "study.json").read_text())
    assert now.pop("place") == {"folder": str(stored / "study"), "cwd": [str(stored)]}
    assert now["settings"].pop("select") == "last"
    assert [len(task.pop("label_names")) for task in now["tasks"]] == [2] * len(now["tasks"])
    assert now | {"hardware": asked["hardware"]} == asked
    for name in (INTERRUPTED, FAILED):
        assert json.loads((arms / name / "config.json").read_text()) == config(name)
        assert not (arms / name / "checkpoint").exists()
        assert not (arms / name / "error.json").exists()
    history = [json.loads(line) for line in (arms / INTERRUPTED / "history.jsonl").read_text().splitlines()]
    assert history[:6] == logged["log_history"]
    found = peftprune.Comparison.load("study")
    assert set(found.runs()["status"]) == {"done"}
    for view in GONE_ON:
        assert_reads(getattr(found, view)(), EXPECTED["gone_on"][view], rel=1e-3, abs=1e-5)


def test_arms_trained_anew_have_the_same_hashes_and_weights(stored: Path, tmp_path: Path) -> None:
    """Equal to the bit on the machine that stored them; other processors differ in the last digits."""
    anew = peftprune.compare(
        METHODS[:4],
        peftprune.Task.from_files("verdicts.csv", "held_out.csv", "sentence", "verdict"),
        model="model",
        budget="rank=2",
        target_modules="attention",
        epochs=4,
        batch_size=8,
        learning_rate=5e-3,
        max_length=16,
        dtype="float32",
        checkpoints=0,
        threads=1,
        workers=1,
        output_dir=tmp_path / "anew",
    )
    assert anew.failures == {}
    first = {name for name in FINISHED if "-s0-" in name}
    assert {p.name for p in (tmp_path / "anew" / "arms").iterdir()} == first
    for name in first:
        old, new = stored / "study" / "arms" / name, tmp_path / "anew" / "arms" / name
        torch.testing.assert_close(weights(new), weights(old), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(new), logits(old), rtol=1e-4, atol=1e-5)


# --- exporting --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", ["lora", "lorpa", "prilora", "lora-drop"])
@pytest.mark.parametrize("format", ["peft", "native"])
def test_an_exported_arm_predicts_what_was_stored(method: str, format: str, stored: Path, tmp_path: Path) -> None:
    done = peftprune.Comparison.load("study").export(tmp_path / "out", method=method, seed=0, format=format)
    assert done.arm == {"task": "verdicts", "budget": "rank=2", "method": method, "seed": 0}
    base = AutoModelForSequenceClassification.from_pretrained("model", num_labels=2)
    load = PeftModel.from_pretrained if format == "peft" else lambda model, out: peftprune.load_adapter(out, model)
    model = load(base, str(done.path)).eval()
    texts = pd.read_csv("held_out.csv")["sentence"].tolist()
    batch = AutoTokenizer.from_pretrained("model")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        said = model(**batch).logits
    (arm,) = (stored / "study" / "arms").glob(f"{method}-s0-*")
    torch.testing.assert_close(said, logits(arm), rtol=1e-4, atol=1e-5)
