"""What a stored study says of each method against the baseline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import peftprune
from peftprune import stats
from peftprune.analysis.frames import Frames
from peftprune.errors import UsageError
from peftprune.report.findings import cell_answer, in_words
from peftprune.report.study_tables import study_table
from peftprune.report.text import table_text
from tests.helpers import classification_task
from tests.stored import store


@pytest.fixture(scope="module")
def study(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> peftprune.Comparison:
    """Three arms on two seeds and two evaluation splits; one of them is LoRA under another name."""
    return peftprune.compare(
        "lora,lora:again,lorpa(initial_rank=8)",
        classification_task(evaluation=("matched", "mismatched")),
        model=tiny_bert,
        budget="rank=2,steps=16",
        seeds=2,
        batch_size=8,
        learning_rate=5e-3,
        max_length=32,
        dtype="float32",
        output_dir=tmp_path_factory.mktemp("study"),
    )


def test_differences_are_those_of_the_table_and_the_statistics(study: peftprune.Comparison) -> None:
    frame = study.against("lora").set_index(["method", "metric"])
    table = study.table().set_index("method")
    for split, metric in (("matched", "accuracy"), ("mismatched", "accuracy_mismatched")):
        row = frame.loc[("lorpa", metric)]
        expected = table.loc["lorpa", f"{metric}_mean"] - table.loc["lora", f"{metric}_mean"]
        assert row["difference"] == pytest.approx(expected, abs=1e-12)
        predictions = []
        for label in ("lorpa", "lora"):
            stored = [pd.read_parquet(study.arm(label, seed).predictions) for seed in (0, 1)]
            predictions.append([f.loc[f["split"] == split, "prediction"].tolist() for f in stored])
        answers = list(classification_task(evaluation=("matched", "mismatched")).evaluation[split]["label"])
        found = stats.paired_bootstrap(*predictions, references=answers, metric="accuracy")
        assert (row["low"], row["high"], row["p"]) == (found.low, found.high, found.p)


def test_equal_predictions_give_no_difference_and_p_1(study: peftprune.Comparison) -> None:
    rows = study.against().query("method == 'lora:again'")
    assert len(rows) == 2
    assert (rows[["difference", "low", "high"]] == 0).all(axis=None)
    assert (rows["p_holm"] == 1).all()
    assert rows["detectable"].isna().all()
    assert set(rows["verdict"]) == {"not distinguishable at this size"}


def test_p_is_corrected_over_methods(study: peftprune.Comparison) -> None:
    for _, rows in study.against().groupby("metric"):
        assert rows["p_holm"].tolist() == pytest.approx(list(stats.holm(rows["p"].tolist())))


def test_interval_p_and_verdict_agree(tmp_path: Path) -> None:
    """Methods from worse to better, so that Holm's procedure rejects some and stops."""
    study = store(tmp_path, methods=("plain", *(f"cut-{i}" for i in range(6))), seeds=range(4))
    for i, method in enumerate(study.methods[1:]):
        for seed in range(4):
            file = study.arm(method, seed).predictions
            frame, base = pd.read_parquet(file), pd.read_parquet(study.arm("plain", seed).predictions)
            kept = (frame["index"] + seed) % 40 >= (0, 3, 6, 9, 12, 20)[i]
            base["prediction"] = base["prediction"].where(kept, base["label"])
            base.to_parquet(file)
    rows = study.against()
    decided = rows["verdict"].isin(["better", "worse"])
    alone = (rows["low"] > 0) | (rows["high"] < 0)
    assert decided.any()
    assert (alone & ~decided).any()
    for low, high in ((rows["low_holm"] > 0, rows["high_holm"] < 0),):
        assert ((low | high) == decided).all()
        assert ((rows["p_holm"] <= 0.05) == decided).all()
    assert rows.loc[decided, "seeds_needed"].isna().all()
    open_ = rows[~decided & (rows["difference"] != 0)]
    assert (open_["seeds_needed"] > 4).all()
    (cell,) = study.cells()
    said = {f.method: f.sentence for f in cell_answer(Frames(cell), cell).findings}
    row = open_[open_["metric"] == "accuracy"].iloc[-1]
    assert said[row["method"]].endswith(f"it needs about {row['seeds_needed']:.0f} seeds")


def test_one_seed_shows_no_p(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "cut"), seeds=[0])
    (cell,) = study.cells()
    frames = Frames(cell)
    (finding,) = cell_answer(frames, cell).findings
    assert "p =" not in finding.sentence
    shown = study_table("against", in_words(frames.against))
    assert shown is not None
    titles = [c.title for c in shown.columns]
    assert {row.cells[titles.index(t)].text for row in shown.rows for t in ("p", "p (Holm)")} == {"–"}
    assert "one seed has no p" in shown.note
    assert "| – |" in table_text(study, "markdown")


def test_the_baseline_must_be_in_the_study(study: peftprune.Comparison) -> None:
    with pytest.raises(UsageError, match=r"baseline: 'prilora'.*lora, lora:again, lorpa"):
        study.against("prilora")
