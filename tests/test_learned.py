"""What is said of arms that learned nothing, of perfect ones, and of a method compared with itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score

from peftprune.analysis.frames import Frames
from peftprune.analysis.learned import by_method, learned, references
from peftprune.comparison import Comparison
from peftprune.report.export.choose import choose
from peftprune.report.export.model_card import CARD_FILE, write_card
from peftprune.report.findings import NOTHING_LEARNED, cell_answer, pooled_answers
from peftprune.report.text import table_text
from peftprune.stats import Verdict
from tests.stored import store


def labels(study: Comparison, method: str) -> list[int]:
    return study.arm(method, 0).read_predictions()["label"].tolist()


def rewrite(study: Comparison, method: str, seed: int, **columns: Any) -> None:
    folder = study.arm(method, seed)
    folder.read_predictions().assign(**columns).to_parquet(folder.predictions)


def test_a_study_of_arms_with_one_answer_has_no_verdict(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("flat-a", "flat-b", "flat-c"), layers=1)
    frames = Frames(study)
    assert set(frames.learned["learned"]) == {"predicts 1 for every example"}
    assert set(frames.against["verdict"]) == {Verdict.NOTHING_LEARNED}
    assert frames.against["seeds_needed"].isna().all()
    answer = cell_answer(frames, next(frames.study.cells()))
    assert answer.headline == NOTHING_LEARNED
    assert [f.words for f in answer.findings] == ["nothing was learned (predicts 1 for every example)"] * 2
    assert set(study.table()["learned"]) == {"predicts 1 for every example"}
    assert "Nothing was learned: train longer or raise the rate." in study.report(tmp_path / "r.html").read_text()
    for kind in ("quality", "curves"):
        assert "learned nothing: flat-a" in " ".join(text.get_text() for text in figure_texts(study.plot(kind)))


def test_a_model_card_says_that_its_arm_learned_nothing(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("flat", "plain"), seeds=(0,), layers=1)
    cards = []
    for method in ("flat", "plain"):
        (tmp_path / method).mkdir()
        write_card(choose(study, method, 0), tmp_path / method, form="peft", how="", facts=[])
        cards.append((tmp_path / method / CARD_FILE).read_text())
    assert "| Learned | predicts 1 for every example |" in cards[0]
    assert "Learned" not in cards[1]


def figure_texts(figure: Any) -> list[Any]:
    from matplotlib.text import Text

    return figure.findobj(Text)


def test_a_study_of_perfect_arms_asks_for_a_harder_task(tmp_path: Path) -> None:
    frames = Frames(store(tmp_path, methods=("top-a", "top-b")))
    assert set(frames.learned["learned"]) == {"at the ceiling (1.000)"}
    answer = cell_answer(frames, next(frames.study.cells()))
    assert answer.headline.startswith("Every arm is at the ceiling: take a harder task")
    assert answer.findings[0].verdict is Verdict.NOT_DISTINGUISHABLE


def test_a_method_against_itself_is_not_distinguishable(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "plain-again"))
    for seed in (0, 1):
        first = study.arm("plain", seed).read_predictions()["prediction"].tolist()
        rewrite(study, "plain-again", seed, prediction=first)
    row = study.against().iloc[0]
    assert row["difference"] == 0
    assert row["verdict"] == "not distinguishable at this size"


def test_who_learned_is_compared_and_who_did_not_is_named(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("flat", "flat-b", "plain"), seeds=range(3))
    answer = cell_answer(Frames(study), next(study.cells()))
    assert answer.headline == "plain is better than flat. flat and flat-b learned nothing."
    assert "Baseline flat: predicts 1 for every example." in answer.limits


def test_the_reference_is_the_majority_in_every_metric(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "cut"), layers=1)
    truth = labels(study, "plain")
    majority = max((0, 1), key=truth.count)
    (row,) = references(study).to_dict("records")
    assert row["method"] == f"majority ({majority})"
    assert row["accuracy_mean"] == accuracy_score(truth, [majority] * len(truth))
    assert row["f1_mean"] == f1_score(truth, [majority] * len(truth), zero_division=0)
    assert f"majority ({majority})" in study.report(tmp_path / "r.html").read_text()
    for format in ("markdown", "latex", "json"):
        assert f"majority ({majority})" in table_text(study, format)


@pytest.mark.parametrize(("wrong", "said"), [(0, ""), (2, "no better than the majority")])
def test_a_score_at_the_majoritys_is_not_learned(wrong: int, said: str, tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain",), seeds=(0,))
    result = study.arm("plain", 0).result()
    assert result is not None
    score = references(study)["accuracy_mean"][0]
    result["metrics"]["accuracy"] = score if wrong else score + 1e-6
    snapshot = study.snapshot()
    snapshot.arm("plain", 0).__dict__["result"] = lambda: result
    (found,) = learned(snapshot, references(snapshot))["learned"]
    assert found == (f"{said} ({score:.3f})" if said else "")


def test_some_seeds_are_counted(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain",), seeds=range(3))
    rewrite(study, "plain", 1, prediction=0)
    (row,) = by_method(learned(study, references(study))).to_dict("records")
    assert (row["state"], row["learned"]) == ("", "predicts 0 for every example in 1 of 3 seeds")


def test_predicted_numbers_that_hardly_vary_are_one_answer(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "cut"), seeds=(0,))
    study.request["tasks"][0].update(kind="regression", metrics=["pearson"])
    numbers = pd.Series(range(40), dtype=float)
    for method, spread in (("plain", 1e-4), ("cut", 0.5)):
        rewrite(study, method, 0, label=numbers, prediction=20 + spread * (numbers - 19.5))
        result = study.arm(method, 0).result()
        assert result is not None
    for key, folder in study.arms():
        text = (folder.path / "result.json").read_text().replace('"accuracy":', '"pearson":')
        (folder.path / "result.json").write_text(text)
        assert key
    found = learned(study, references(study)).set_index("method")["learned"].to_dict()
    assert found == {"plain": "predicts about 20 for every example", "cut": ""}
    assert references(study)["method"].tolist() == ["mean (19.5)"]
    assert references(study)["pearson_mean"].tolist() == [0.0]


def test_pooled_results_name_the_tasks_on_which_nothing_was_learned(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("flat", "flat-b", "plain"), tasks=("rte", "mrpc"), seeds=range(3))
    frames = Frames(study)
    verdicts = frames.pooled.set_index("method")["verdict"].to_dict()
    assert verdicts["flat-b"] is Verdict.NOTHING_LEARNED
    assert verdicts["plain"] is not Verdict.NOTHING_LEARNED
    assert "learned nothing on rte, mrpc" in str(frames.pooled["learned"].tolist())
    (answer,) = pooled_answers(frames)
    assert answer.headline.endswith("flat and flat-b learned nothing.")
    assert "learned" in frames.average_ranks


def test_undertuned_methods_are_named_in_one_line(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "x-head", "p-still", "flat"))
    said = [s for s in cell_answer(Frames(study), next(study.cells())).limits if "undertuned" in s]
    assert said == [
        "At this one learning rate, these may be undertuned: flat (predicts 1 for every example) and p-still (its "
        "training loss moved by 0). --tune gives each method its own."
    ]


def test_a_damaged_file_leaves_the_scores(tmp_path: Path) -> None:
    study = store(tmp_path, methods=("plain", "flat"))
    study.arm("flat", 0).predictions.write_bytes(b"")
    assert study.table()["accuracy_mean"].notna().all()
