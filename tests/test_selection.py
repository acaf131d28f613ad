"""The state that is reported: the last, or the best checkpoint on held-out data."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import peftprune
from peftprune.errors import RunError, UsageError
from peftprune.report.findings import cell_title
from peftprune.tasks import Task
from peftprune.training.checkpoints import checkpoints_in
from peftprune.training.selection import Selection
from peftprune.training.settings import TrainingSettings
from tests.helpers import Arm, CrashError, classification_task, make_arm, same, stored_logits
from tests.killing import left_by


def task() -> Task:
    return replace(classification_task(), validation=classification_task(30).train)


def selecting(method: str, folder: Path, model: Path, **settings: Any) -> Arm:
    few = {"checkpoints": 4, "budget": "rank=4,steps=24", "select": "validation"}
    return make_arm(method, folder, model, task=task(), **(few | settings))


def result(arm: Arm) -> dict[str, Any]:
    found = arm.folder.result()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("method", "scores", "best"),
    [
        ("lora", (0.9, 0.5, 0.6, 0.6), 6),
        ("lora", (0.1, 0.5, 0.5, 0.2), 12),
        ("lora", (0.1, 0.5, 0.5, 0.6), 24),
        ("full", (0.1, 0.5, 0.5, 0.2), 12),
        # The first states lie before the last decision.
        ("lorpa(initial_rank=8,dense_share=0.6)", (0.9, 0.5, 0.6, 0.6), 18),
        ("sora", (0.9, 0.9, 0.9, 0.6), 24),
        ("adalora-peft", (0.9, 0.9, 0.9, 0.6), 24),
    ],
)
def test_the_best_checkpoint_since_the_last_decision_is_reported(
    method: str, scores: tuple[float, ...], best: int, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, logits = selecting(method, tmp_path, tiny_bert), dict[int, Tensor]()
    real = Selection.score

    def score(self: Selection, trainer: Any) -> None:
        real(self, trainer)
        self.rows[-1]["score"] = scores[len(logits)]
        frame = arm.inputs.objective.evaluate(trainer, arm.inputs.evaluation, self.settings).predictions
        logits[self.rows[-1]["step"]] = Tensor([list(row) for row in frame["logits"]])

    monkeypatch.setattr(Selection, "score", score)
    arm.run()
    assert list(logits) == [6, 12, 18, 24]
    found = result(arm)["evaluation"]
    assert found["selected_step"] == best
    assert [row["score"] for row in found["selection"]] == list(scores)
    apart = {step: float((stored_logits(arm.folder) - rows).abs().max()) for step, rows in logits.items()}
    assert apart[best] < 1e-5
    assert min(value for step, value in apart.items() if step != best) > 1e-4
    assert result(arm)["ledger"]["steps"] == 24


@pytest.mark.parametrize("method", ["adalora", "lora-drop(sample=0.25,probe_passes=2)"])
def test_scoring_checkpoints_changes_no_bit_of_training(
    method: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Selection, "best", property(lambda self: self.rows[-1]["step"]))
    logits, scores = [], []
    for select in ("last", "validation", "paper"):
        arm = selecting(method, tmp_path / select, tiny_bert, select=select, lora_dropout=0.1, budget="rank=4,steps=12")
        arm.run()
        logits.append(stored_logits(arm.folder))
        scores.append(result(arm)["evaluation"].get("selection", []))
    assert [len(found) for found in scores] == [0, 4, 4]
    assert scores[2][-1]["score"] == result(arm)["metrics"]["accuracy"]
    assert all(same(logits[0], other) for other in logits)


def test_interrupted_an_arm_selects_the_same_state(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Selection.score

    def score(self: Selection, trainer: Any) -> None:
        real(self, trainer)
        self.rows[-1]["score"] = -self.rows[-1]["step"]

    monkeypatch.setattr(Selection, "score", score)
    names = ("whole", "cut", "damaged")
    whole, cut, damaged = (selecting("lora", tmp_path / n, tiny_bert, budget="rank=4,steps=8") for n in names)
    whole.run()
    with pytest.raises(CrashError):
        cut.run(crash_at=7)
    # The best is kept beside the newest ones.
    kept = [path.name for path in checkpoints_in(cut.folder.checkpoints)]
    assert kept == ["checkpoint-6", "checkpoint-4", "checkpoint-2"]
    shutil.copytree(cut.folder.path, damaged.folder.path)
    cut.run()
    (damaged.folder.checkpoints / "checkpoint-2" / "manifest.json").unlink()
    with pytest.raises(RunError, match="select: checkpoint-2 is damaged"):
        damaged.run()
    damaged.run()
    assert all(same(left_by(arm.folder), left_by(whole.folder)) for arm in (cut, damaged))


def test_hashes_change_only_where_a_checkpoint_is_selected() -> None:
    plain = TrainingSettings(checkpoints=7).identity("classification")
    assert plain == TrainingSettings().identity("classification")
    assert not {"select", "checkpoints"} & plain.keys()
    found = TrainingSettings(select="paper", checkpoints=7).identity("classification")
    assert found == plain | {"select": "paper", "checkpoints": 7}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"select": "best"}, ("select: 'best'", "validation")),
        ({"select": "paper", "checkpoints": 0}, ("select: 'paper' has no checkpoints",)),
        ({"select": "validation", "refit": True, "tune": "learning_rate=1e-3,1e-2"}, ("refit: True would train on",)),
        ({"select": "validation", "task": classification_task()}, ("task tiny", "--validation-file")),
    ],
)
def test_a_wrong_request_is_refused(
    given: dict[str, Any], parts: tuple[str, ...], tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        peftprune.compare("lora", **({"task": task(), "model": tiny_bert, "output_dir": tmp_path / "s"} | given))
    assert all(part in str(refused.value) for part in parts), refused.value
    assert not (tmp_path / "s").exists()


def test_tables_say_what_was_selected_on_and_a_study_keeps_to_it(tiny_bert: Path, tmp_path: Path) -> None:
    def compare(folder: str, methods: str = "lora", **given: Any) -> Any:
        short = {
            "budget": "rank=2,steps=2",
            "max_length": 16,
            "target_modules": "attention",
            "threads": 1,
            "workers": 1,
        }
        return peftprune.compare(methods, task(), model=tiny_bert, output_dir=tmp_path / folder, **(short | given))

    paper, ours = compare("paper", select="paper"), compare("ours", select="validation", tune="learning_rate=1e-3,1e-2")
    assert cell_title(paper).endswith(", best checkpoint on the reported split")
    assert "best checkpoint" not in cell_title(ours)
    assert paper.table()["selected_on"].tolist() == ["the reported split"]
    assert "selected_on" not in ours.table()
    said = [found.request["tasks"][0]["evaluation_split"] for found in (paper, ours)]
    assert said[0] == "generated, best checkpoint on the reported split itself"
    assert said[1] == "generated, best checkpoint on 30 validation examples"
    trial = peftprune.Comparison.load(tmp_path / "ours" / "tuning")
    for _, _, found in trial.finished():
        assert found["metrics"]["accuracy"] == max(row["score"] for row in found["evaluation"]["selection"])
    for changed in ({"checkpoints": 2}, {"select": "last"}):
        with pytest.raises(UsageError, match=f"{next(iter(changed))}: .* is not that of the study"):
            compare("paper", "lora,dora", **({"select": "paper"} | changed))
