"""What a stored study says of each method against the baseline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

import peftprune
from peftprune import stats
from peftprune.analysis.frames import Frames
from peftprune.cli.app import app
from peftprune.errors import UsageError
from peftprune.report.findings import cell_answer, in_words
from peftprune.report.study_tables import study_table
from peftprune.report.text import table_text
from peftprune.study.command import command
from tests.helpers import classification_task
from tests.stored import store


@pytest.fixture(scope="module")
def study(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> peftprune.Comparison:
    """Three arms on two seeds and two evaluation splits; one of them is LoRA under another name."""
    return train(tiny_bert, tmp_path_factory.mktemp("study"))


def compare_again(study: peftprune.Comparison, **more: Any) -> peftprune.Comparison:
    return train(study.request["model"], study.path, **more)


def train(model: str | Path, folder: Path, **more: Any) -> peftprune.Comparison:
    return peftprune.compare(
        "lora,lora:again,lorpa(initial_rank=8)",
        classification_task(evaluation=("matched", "mismatched")),
        model=model,
        budget="rank=2,steps=16",
        seeds=2,
        batch_size=8,
        learning_rate=5e-3,
        max_length=32,
        dtype="float32",
        output_dir=folder,
        **more,
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
    assert rows["verdict"].str.startswith("not distinguishable at this size").all()
    assert "lora and lora:again score the same." in repr(study)


def test_with_one_seed_nothing_is_said_of_what_the_study_detects(tmp_path: Path) -> None:
    for seeds in ([0, 1], [0]):
        frames = Frames(store(tmp_path / str(len(seeds)), seeds=seeds))
        limits = " ".join(cell_answer(frames, next(frames.study.cells())).limits)
        assert ("smallest true difference" in limits) == (len(seeds) > 1)


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


def agreeing(folder: Path, seeds: int = 5) -> peftprune.Comparison:
    """Methods that differ from the baseline in no, few and many of 40 answers, which depend on the seed."""
    study = store(folder, methods=("plain", "cut-0", "cut-1", "cut-2", "cut-3"), seeds=range(seeds))
    for i, method in enumerate(study.methods[1:]):
        for seed in range(seeds):
            frame = pd.read_parquet(study.arm("plain", seed).predictions)
            flipped = (frame["index"] * 7 + seed * 11) % 40 < (0, 1, 4, 12)[i]
            other = frame["label"] if i == 3 else 1 - frame["prediction"]
            frame["prediction"] = frame["prediction"].where(~flipped, other)
            frame.to_parquet(study.arm(method, seed).predictions)
    return study


def test_verdicts_with_a_margin_are_read_off_the_interval(tmp_path: Path) -> None:
    study = agreeing(tmp_path)
    kinds = set()
    for margin in (0.03, 0.06, 0.3):
        rows = study.against(margin={"accuracy": margin})
        assert rows[rows["metric"] == "f1"]["margin"].isna().all()
        for row in rows[rows["metric"] == "accuracy"].to_dict("records"):
            low, high, words = row["low_holm"], row["high_holm"], row["verdict"]
            kinds.add(words.split()[0].rstrip(","))
            inside = -margin < low and high < margin
            assert (row["p_equivalent"] <= 0.05) == inside
            assert (row["p_not_worse"] <= 0.05) == (low > -margin)
            if low > 0 or high < 0:
                by_less = f", by less than {margin:g}" * inside
                assert words == ("better" if low > 0 else "worse") + by_less
            elif inside:
                assert words == f"equivalent within {margin:g}"
            else:
                assert words == (f"not worse by more than {margin:g}" if low > -margin else "undecided")
    assert {"equivalent", "not", "undecided"} <= kinds
    without = study.against()
    assert "margin" not in without
    assert set(without["verdict"]) <= {"better", "worse", "not distinguishable at this size"}
    shown = study_table("against", rows)
    assert shown is not None
    assert "p (equivalent)" in [c.title for c in shown.columns]
    (cell,) = study.cells()
    answer = cell_answer(Frames(cell, margin=0.3), cell)
    assert "equivalent to plain within 0.3" in answer.headline
    assert any("differences of less than 0.3 in accuracy do not matter" in limit for limit in answer.limits)
    study.report(tmp_path / "page.html", margin=0.3)
    assert "equivalent within 0.3" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("margin", "said"),
    [
        (-0.01, "margin: -0.01 is not a number above 0"),
        (float("nan"), "margin: nan is not"),
        (0, "margin: 0 is not"),
        (True, "margin: True is not"),
        (1.0, "margin: 1.0 allows any difference in accuracy"),
        ("accuracy", "margin: 'accuracy' is not"),
        ("accuracy=0.01,accuracy=0.02", "one margin for each metric"),
        ("0.01,f1=0.1", "one margin for each metric"),
        ({"bleu": 0.1}, "margin: 'bleu' is not a metric of the study. It has: accuracy, f1"),
        ({}, "names no metric"),
    ],
)
def test_margins_out_of_range_are_refused(margin: Any, said: str, tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "cut"))
    with pytest.raises(UsageError, match=re.escape(said)):
        study.against(margin=margin)


def test_a_margin_is_stored_with_the_study_and_trains_nothing(study: peftprune.Comparison) -> None:
    arms = {p.name: p.stat().st_mtime_ns for p in (study.path / "arms").glob("*/result.json")}
    request = json.loads((study.path / "study.json").read_text())
    try:
        same = compare_again(study, margin="accuracy=0.5, accuracy_mismatched=0.25")
        assert same.request["margin"] == "accuracy=0.5,accuracy_mismatched=0.25"
        assert {p.name: p.stat().st_mtime_ns for p in (study.path / "arms").glob("*/result.json")} == arms
        rows = peftprune.Comparison.load(study.path).against().set_index(["method", "metric"])
        assert rows.loc[("lora:again", "accuracy"), "verdict"].startswith("equivalent within 0.5")
        assert rows.loc[("lora:again", "accuracy_mismatched"), "margin"] == 0.25
        assert "margin" in compare_again(study).against()
        with pytest.raises(UsageError, match=r"margin: 7.0 allows any difference"):
            compare_again(study, margin=7)
        done = CliRunner().invoke(app, ["report", str(study.path), "--format", "csv", "--margin", "0.125"])
        assert "equivalent within 0.125" in done.stdout
        assert CliRunner().invoke(app, ["report", str(study.path), "--margin", "nan"]).exit_code == 2
    finally:
        (study.path / "study.json").write_text(json.dumps(request))


def test_the_command_that_repeats_a_study_names_its_margin(tmp_path: Path) -> None:
    request = store(tmp_path, methods=("plain", "cut")).request
    assert "--margin f1=0.01" in command({**request, "margin": "f1=0.01"})
    assert "--margin" not in command(request)


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


def test_few_seeds_get_a_second_estimate_of_their_deviation(tmp_path: Path) -> None:
    def said(seeds: int) -> list[str]:
        study = store(tmp_path / str(seeds), methods=("plain", "cut-a", "cut-b"), seeds=range(seeds))
        (cell,) = study.cells()
        return [limit for limit in cell_answer(Frames(cell), cell).limits if "second estimate" in limit]

    (two,) = said(2)
    assert two.startswith("With 2 seeds, an interval rests on 1 degree of freedom. A second estimate pools all methods")
    assert "with 3 degrees of freedom" in two or "do not vary alike" in two
    assert len(said(3)) == 1
    assert said(1) == said(4) == []


def test_the_baseline_must_be_in_the_study(study: peftprune.Comparison) -> None:
    with pytest.raises(UsageError, match=r"baseline: 'prilora'.*lora, lora:again, lorpa"):
        study.against("prilora")
