"""What a stored study says of each method against the baseline."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import peftprune
from peftprune import stats
from peftprune.errors import UsageError
from tests.helpers import classification_task


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


def test_the_baseline_must_be_in_the_study(study: peftprune.Comparison) -> None:
    with pytest.raises(UsageError, match=r"baseline: 'prilora'.*lora, lora:again, lorpa"):
        study.against("prilora")
