"""An audit finds what was changed in a finished study, and a packed study holds all that its tables need."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from peftprune.analysis.audit import audit
from peftprune.cli.app import app
from peftprune.comparison import Comparison
from peftprune.errors import UsageError
from peftprune.study.packed import EXAMPLE, pack, unpack
from peftprune.study.seal import digests
from peftprune.study.store import ArmFolder, config_hash
from tests.helpers import texts
from tests.report_studies import Page

Tamper = Callable[[Path], None]


def request(folder: Path, model: Path) -> list[str]:
    options = {
        "train-file": folder / "train.csv",
        "test-file": folder / "test.csv",
        "text": "text",
        "label": "label",
        "model": model,
        "methods": "lora,lorpa(initial_rank=8)",
        "budget": "rank=4,steps=24",
        "seeds": 2,
        "tune": "learning_rate=1e-2,5e-2",
        "validation-file": folder / "validation.csv",
        "target-modules": "attention",
        "batch-size": 8,
        "max-length": 32,
        "dtype": "float32",
        "threads": 1,
        "workers": 1,
    }
    return ["compare", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned study of two methods and two seeds; its files lie beside it."""
    folder = tmp_path_factory.mktemp("audit")
    for i, (name, n) in enumerate({"train": 64, "test": 30, "validation": 20}.items()):
        rows, labels = texts(n, i)
        pd.DataFrame({"text": rows, "label": labels}).to_csv(folder / f"{name}.csv", index=False)
    run = CliRunner().invoke(app, [*request(folder, tiny_bert), "--output-dir", str(folder / "study")])
    assert run.exit_code == 0, run.output
    return folder / "study"


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def arm(study: Path, label: str = "lorpa", seed: int = 0) -> Path:
    return next((study / "arms").glob(f"{label}-s{seed}-*"))


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def seal(folder: Path) -> None:
    """Seals an arm again, as one would who knows of the digests."""
    found = ArmFolder(folder).result()
    assert found is not None
    edit(folder / "result.json", lambda r: r.update(digests=digests(ArmFolder(folder), found)))


def in_result(change: Callable[[Any], None], *, again: bool = True) -> Tamper:
    def tamper(study: Path) -> None:
        edit(arm(study) / "result.json", change)
        if again:
            seal(arm(study))

    return tamper


def in_config(change: Callable[[Any], None]) -> Tamper:
    return lambda study: edit(arm(study) / "config.json", change)


def in_request(change: Callable[[Any], None]) -> Tamper:
    return lambda study: edit(study / "study.json", change)


def in_predictions(column: str, *, again: bool = True) -> Tamper:
    def tamper(study: Path) -> None:
        path = arm(study) / "predictions.parquet"
        frame = pd.read_parquet(path)
        wrong = frame.index[frame["prediction"] != frame["label"]][0]
        frame.loc[wrong, column] = 1 - frame.loc[wrong, column]
        frame.to_parquet(path, index=False)
        if again:
            seal(arm(study))

    return tamper


def two_predictions(study: Path) -> None:
    """Exchanges the predictions of two examples with equal labels, which changes no metric."""
    path = arm(study) / "predictions.parquet"
    frame = pd.read_parquet(path)
    wrong = frame.index[frame["prediction"] != frame["label"]][0]
    label = frame.loc[wrong, "label"]
    right = frame.index[(frame["prediction"] == label) & (frame["label"] == label)][0]
    frame.loc[[wrong, right], "prediction"] = [label, 1 - label]
    frame.to_parquet(path, index=False)


def fewer_examples(study: Path) -> None:
    path = arm(study) / "predictions.parquet"
    frame = pd.read_parquet(path)
    frame[frame["prediction"] == frame["label"]].to_parquet(path, index=False)
    edit(arm(study) / "result.json", lambda r: r["metrics"].update(accuracy=1.0, f1=1.0))
    seal(arm(study))


def trace_row(study: Path) -> None:
    path = arm(study) / "allocation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    next(iter(rows[-1]["sites"].values()))["rank"] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seal(arm(study))


def other_rate(study: Path) -> None:
    """Trains nothing: states another rate in configuration, result, hash and request, all of them consistent."""
    folder = arm(study)
    for name in ("config.json", "result.json"):
        edit(folder / name, lambda value: value["settings"].update(learning_rate=0.5))
    digest = config_hash(ArmFolder(folder).config())
    seal(folder)
    old = folder.name.rpartition("-")[2]
    folder.rename(folder.with_name(folder.name.replace(old, digest)))

    def renamed(request: Any) -> None:
        next(a for a in request["arms"] if a["hash"] == old)["hash"] = digest

    edit(study / "study.json", renamed)


def swapped(study: Path) -> None:
    a, b = (arm(study, seed=seed) / "adapter" / "adapter_model.safetensors" for seed in (0, 1))
    a.write_bytes(b.read_bytes())


def copied(study: Path) -> None:
    """Gives the method the results of the other one's run."""
    for name in ("result.json", "predictions.parquet"):
        shutil.copy(arm(study, "lora") / name, arm(study) / name)


def without_arm(study: Path) -> None:
    shutil.rmtree(arm(study))


def without_seed(study: Path) -> None:
    shutil.rmtree(arm(study, seed=1))
    edit(study / "study.json", drop(("lorpa", 1)))


def drop(*keys: tuple[str, int]) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request["arms"] = [a for a in request["arms"] if (a["label"], a["seed"]) not in keys]

    return change


def trial_score(study: Path) -> None:
    """Makes the trial that was not chosen the better one, without a trace in the trial itself."""
    chosen = {row["trial"] for row in json.loads((study / "study.json").read_text())["tuning"]["chosen"]}
    trials = Comparison.load(study / "tuning")
    for key, folder, _ in trials.finished():
        frame = folder.read_predictions()
        if key["method"] in chosen:
            frame["prediction"] = 1 - frame["label"]
        else:
            frame["prediction"] = frame["label"]
        frame.to_parquet(folder.predictions, index=False)
        value = 0.0 if key["method"] in chosen else 1.0
        edit(folder.path / "result.json", lambda r, value=value: r["metrics"].update(accuracy=value, f1=value))
        seal(folder.path)


CASES: dict[str, tuple[Tamper, str]] = {
    "a score": (in_result(lambda r: r["metrics"].update(accuracy=0.99)), "by its predictions"),
    "a left out metric": (in_result(lambda r: r["metrics"].pop("f1")), "its metrics are"),
    "a prediction": (in_predictions("prediction"), "by its predictions"),
    "a label": (in_predictions("label"), "by its predictions"),
    "two predictions": (two_predictions, "predictions was changed after the run"),
    "examples": (fewer_examples, "examples instead of"),
    "the seed of a configuration": (in_config(lambda c: c.update(seed=7)), "the configuration has the seed 7"),
    "the seed of a result": (in_result(lambda r: r.update(seed=7)), "seed is 7 in the result"),
    "an option": (in_config(lambda c: c["options"].update(initial_rank=16)), "its configuration has the hash"),
    "a rate in the result": (in_result(lambda r: r["settings"].update(learning_rate=0.5)), "setting learning_rate"),
    "a rate everywhere": (other_rate, "tuning chose"),
    "versions": (in_config(lambda c: c["versions"].update(torch="9")), "its configuration has the hash"),
    "a row of the trace": (trace_row, "in the trace"),
    "a rank of the result": (in_result(lambda r: r["allocation"][0].update(rank=9)), "in the trace"),
    "a dropped arm": (without_arm, "has no result"),
    "a dropped seed": (without_seed, "has no arm with seed [1]"),
    "an arm out of the request": (in_request(drop(("lora", 1), ("lorpa", 1))), "the request does not name it"),
    "an adapter": (swapped, "adapter was changed after the run"),
    "another method's result": (copied, "in the result and"),
    "a larger budget": (in_result(lambda r: r["budget"].update(params=10**9)), "budget params is"),
    "parameters": (in_result(lambda r: r["ledger"].update(final_params=10**9)), "exceed the budget"),
    "steps": (in_result(lambda r: r["ledger"].update(steps=700)), "700 steps exceed the budget"),
    "costs": (in_result(lambda r: r["ledger"].update(flops=1.0), again=False), "result was changed after the run"),
    "a loss": (lambda study: trace_loss(study), "history was changed after the run"),
    "a choice": (in_request(lambda r: r["tuning"]["chosen"][0].update(trials=9)), "the trials say"),
    "a trial": (trial_score, "the trials say"),
}


def trace_loss(study: Path) -> None:
    path = arm(study) / "history.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["loss"] = 0.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_nothing_is_found_in_a_study_as_it_was_trained(study: Path) -> None:
    assert audit(Comparison.load(study)) == []


@pytest.mark.parametrize("name", CASES)
def test_what_was_changed_is_found(name: str, study: Path) -> None:
    tamper, expected = CASES[name]
    tamper(study)
    found = audit(Comparison.load(study))
    assert any(expected in problem for problem in found), found


def test_unequal_budgets_of_one_table_are_found(study: Path) -> None:
    for seed in (0, 1):
        folder = arm(study, seed=seed)
        for name in ("config.json", "result.json"):
            edit(folder / name, lambda value: value["budget"].update(total_steps=8))
        seal(folder)
    assert any("unequal budgets" in problem for problem in audit(Comparison.load(study)))


def test_a_packed_study_gives_the_same_tables(study: Path, tmp_path: Path) -> None:
    arms = pack(study, tmp_path / "packed")
    assert arms == 4 + len(list((study / "tuning" / "arms").iterdir()))
    unpack(tmp_path / "packed", tmp_path / "again", request=True)
    before, after = Comparison.load(study), Comparison.load(tmp_path / "again")
    for frame in ("table", "against", "tuning", "trace", "history"):
        pd.testing.assert_frame_equal(getattr(before, frame)(), getattr(after, frame)())
    assert audit(after) == []
    assert pack(study, tmp_path / "packed") == arms
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is not a packed study"):
        pack(study, tmp_path / "mine")
    with pytest.raises(UsageError, match=r"holds no arms\.parquet"):
        unpack(study, tmp_path / "other")


def test_a_packed_study_does_not_name_the_folders_of_its_machine(study: Path, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    edit(study / "study.json", lambda request: request.update(data_dir=data))
    for folder in (study / "arms").iterdir():
        edit(
            folder / "result.json",
            lambda result: result["meta_info"]["dataset_info"].update(source=f"folder {data}/RTE"),
        )
    pack(study, tmp_path / "packed")
    request = json.loads((tmp_path / "packed" / "study.json").read_text())
    results = pd.read_parquet(tmp_path / "packed" / "arms.parquet")["result.json"]
    assert (request["data_dir"], "place" in request) == (None, False)
    assert all('"folder $PEFTPRUNE_DATA/RTE"' in text and data not in text for text in results)


def test_a_folder_of_studies_is_audited_study_by_study(study: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(study, tmp_path / "all" / name)
    run = CliRunner().invoke(app, ["audit", str(tmp_path / "all")])
    assert run.exit_code == 0, run.output
    assert "8 finished arms: 8 sealed" in run.stdout
    two_predictions(study)
    pack(study, tmp_path / "all" / "two")
    run = CliRunner().invoke(app, ["audit", str(tmp_path / "all")])
    assert run.exit_code == 1
    assert "two: " in run.stderr
    assert "one: " not in run.stderr
    empty = CliRunner().invoke(app, ["audit", str(tmp_path / "none")])
    assert empty.exit_code == 2
    assert "holds no study.json" in empty.stderr


def test_a_leaderboard_shows_studies_that_pass_and_names_the_others(study: Path, tmp_path: Path) -> None:
    pack(study, tmp_path / "all" / "packed")
    forged = Path(shutil.copytree(study, tmp_path / "all" / "forged"))
    in_result(lambda r: r["metrics"].update(accuracy=0.99))(forged)
    words = ["leaderboard", str(study), str(tmp_path / "all"), "--out", str(tmp_path / "site")]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 1, run.output
    reason = next(problem for problem in audit(Comparison.load(forged)) if "by its predictions" in problem)
    assert f"refused: {forged}: {reason}" in run.stderr
    page = Page((tmp_path / "site" / "index.html").read_text())
    assert str(forged) not in page.text
    table = Comparison.load(study).table()
    for name in (study, tmp_path / "all" / "packed"):
        assert page.texts.count(str(name)) == len(table)
    shown = [float(number.value) for number in page.numbers if number.column == "score_mean"]
    assert shown == 2 * sorted(table["accuracy_mean"], reverse=True)
    for rate in table["learning_rate"]:
        assert f"learning_rate={rate:g}" in page.text
    run = CliRunner().invoke(app, ["leaderboard", str(forged), "--out", str(tmp_path / "none")])
    assert run.exit_code == 2
    assert reason in run.stderr
    assert not (tmp_path / "none").exists()


def test_the_example_is_a_finished_study_to_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(file.stat().st_size for file in EXAMPLE.rglob("*") if file.is_file()) < 3_000_000
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["example"])
    assert run.exit_code == 0, run.output
    study = Comparison.load("runs/example")
    assert set(study.runs()["status"]) == {"done"}
    assert not re.search(r'"/\w', (EXAMPLE / "study.json").read_text()), "a path of the machine that trained it"
    assert "is not empty" in CliRunner().invoke(app, ["example"]).output
    run = CliRunner().invoke(app, ["export", "runs/example", "--best", "--out", "adapter"])
    assert "as in the example and in packed studies" in re.sub(r"\s+", " ", run.output)


@pytest.mark.slow
def test_the_example_has_a_report_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["example"], ["report", "runs/example"], ["plot", "runs/example"]):
        run = CliRunner().invoke(app, words)
        assert run.exit_code == 0, run.output
    assert {"report.html", "ranks.png"} < {path.name for path in (tmp_path / "runs" / "example").iterdir()}


def test_reused_arms_are_not_trained_again(study: Path, finished: Path, tmp_path: Path, tiny_bert: Path) -> None:
    pack(study, tmp_path / "packed")
    options = request(finished.parent, tiny_bert)
    options[options.index("--seeds") + 1] = "3"
    options += ["--reuse", str(tmp_path / "packed"), "--output-dir", str(tmp_path / "new")]
    run = CliRunner().invoke(app, options)
    assert run.exit_code == 0, run.output
    new = Comparison.load(tmp_path / "new")
    assert {key["seed"] for key, folder in new.arms() if folder.adapter.exists()} == {2}
    assert not list((tmp_path / "new" / "tuning" / "arms").glob("*/adapter"))
    assert len(list(new.finished())) == 6


def test_reuse_says_why_arms_of_another_version_do_not_count(
    study: Path, finished: Path, tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(study, tmp_path / "packed")
    file = tmp_path / "packed" / "study.json"
    stored = json.loads(file.read_text())
    stored["versions"]["peft"] = "0.1.0"
    file.write_text(json.dumps(stored))
    options = [*request(finished.parent, tiny_bert), "--reuse", str(tmp_path / "packed")]
    assert CliRunner().invoke(app, [*options, "--output-dir", str(tmp_path / "new")]).exit_code == 0
    assert f"was trained with peft 0.1.0 ({version('peft')} here)" in caplog.text


@pytest.mark.slow
def test_the_command_trains_arms_again_and_compares_their_bits(study: Path, finished: Path) -> None:
    run = CliRunner().invoke(app, ["audit", str(study), "--arms", "2", "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert (found["finished"], found["sealed"], found["adapters"], len(found["trained_again"])) == (4, 4, 4, 2)


@pytest.mark.slow
def test_an_arm_that_was_made_up_is_found_by_training_it_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_predictions(study)
    seal(arm(study))
    assert audit(Comparison.load(study)) == []
    monkeypatch.setattr("random.sample", lambda arms, count: [a for a in arms if a[2].path.name == arm(study).name])
    run = CliRunner().invoke(app, ["audit", str(study), "--arms", "1"])
    assert run.exit_code == 1
    assert "trained again, its predictions differs" in run.output
