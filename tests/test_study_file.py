"""A study written down, and the command that repeats one."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

import peftprune
from peftprune.cli.app import app
from peftprune.cli.study_file import overridden, read_study_file
from peftprune.errors import UsageError
from peftprune.strategy.budget import Budget
from peftprune.study.arguments import parse_budgets, parse_seeds, parse_targets
from peftprune.study.command import command
from peftprune.study.paths import located
from peftprune.training.settings import resolve_settings
from tests.helpers import DEFAULTS, classification_task, regression_task
from tests.test_cli import files as files
from tests.test_cli import peftprune as run


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_a_file_holds_the_arguments_of_compare(tmp_path: Path) -> None:
    found = read_study_file(
        write(
            tmp_path,
            "task: [rte, mrpc]\n"
            "methods:\n  - lora\n  - lorpa:r64(initial_rank=64)\n"
            "budget: [rank=2, {params: 3000, count: nonzero}]\n"
            "seeds: [1, 5]\nlearning_rate: 1e-3\nepochs: 2\nmax_length:\n",
        )
    )
    assert found == {
        "task": ["rte", "mrpc"],
        "methods": ["lora", "lorpa:r64(initial_rank=64)"],
        "budget": ["rank=2", Budget(params=3000, count="nonzero")],
        "seeds": [1, 5],
        "learning_rate": 0.001,
        "epochs": 2,
    }


def test_whole_numbers_and_decimals_ask_for_the_same(tmp_path: Path) -> None:
    whole, decimal = (
        read_study_file(write(tmp_path, f"epochs: {n}\nlora_dropout: {d}")) for n, d in ((2, 0), ("2.0", "0.0"))
    )
    assert json.dumps(resolve_settings(whole).as_dict()) == json.dumps(resolve_settings(decimal).as_dict())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taks: rte", r"study\.yaml: argument: 'taks' does not exist\. Did you mean 'task'"),
        ("task: [", "is not YAML"),
        ("- rte", "holds no arguments"),
        ("", "holds no arguments"),
        ("learning_rate: fast", r"learning_rate: 'fast' is not a number"),
        ("task: {train_file: a.csv}", "does not fit .*test_file"),
        ("budget: {rnk: 8}", "does not fit .*rnk"),
        ("budget: {5: 8}", "budget: .* does not fit"),
        ("budget: {rank: '8'}", "budget.rank: '8' is not an integer"),
        ("budget: {rank: 8, epochs: true}", "budget.epochs: True is not a number"),
        ("budget: {rank: 1, rank: 2}", "'rank' occurs twice"),
        ("seeds: 2024-13-45", "is not YAML .*quotes"),
        ("seeds: !!int x", "is not YAML"),
        ("seeds: !!map [1]", "is not YAML"),
        (f"seeds: {'[' * 5000}", "is not YAML"),
        ("5: lora", "argument: 5 does not exist"),
        *(
            (f"task: {{train_file: a.csv, test_file: b.csv, text: t, label: l, {given}}}", message)
            for given, message in (
                ("kind: [generation]", "kind: .* is not text. Put it in quotes"),
                ("regression: 1", "regression: 1 is neither true nor false"),
                ("name: 5", "name: 5 is not text"),
                ("name: ../x", "name: '../x' cannot name a folder"),
                ("metrics: accuracy", "metrics: 'accuracy' is not a list of texts"),
            )
        ),
        ("task: {train_file: 5, test_file: b.csv, text: t, label: l}", "train_file: 5 is not a name or path"),
        ('task: {train_file: "a\\0.csv", test_file: b.csv, text: t, label: l}', "train_file: .* is not a name or path"),
        ("task: {train_file: a.csv, test_file: b.csv, text: 5, label: l}", "text: .* is not a list of texts"),
        (
            "task: {train_file: a.csv, test_file: b.csv, text: t, label: no}",
            "label: False is not text. Put it in quotes",
        ),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_study_file(write(tmp_path, text))


def test_a_config_of_another_class_is_refused() -> None:
    with pytest.raises(UsageError, match="lorpa config: 5 is not a LoRPAConfig"):
        peftprune.methods.registry.load("lorpa")(5)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config: .* cannot be read"):
        read_study_file(tmp_path / "none.yaml")


def test_options_win_over_the_file(files: list[str], tiny_bert: Path, tmp_path: Path) -> None:
    names = dict(zip(files[::2], files[1::2], strict=True))
    config = write(
        tmp_path,
        f"task: {{train_file: {names['--train-file']}, test_file: {names['--test-file']}, "
        "text: sentence, label: verdict}\n"
        f"model: {tiny_bert}\nmethods: [lora, lora-restart]\nbudget: ['rank=2,steps=4', 'rank=4,steps=4']\n"
        f"seeds: 2\nbatch_size: 8\nmax_length: 32\ndtype: float32\noutput_dir: {tmp_path / 'study'}\n",
    )
    result = run("compare", "--config", config, "--seeds", 1, "--methods", "lora")
    assert result.exit_code == 0, result.output
    study = peftprune.Comparison.load(tmp_path / "study")
    assert (study.methods, study.request["seeds"]) == (["lora"], [0])
    assert study.budgets == ["rank=2,steps=4", "rank=4,steps=4"]
    assert study.request["settings"]["batch_size"] == 8
    for budget in study.budgets:
        assert f", budget {budget.replace(',', ', ')}" in result.output


def test_the_stored_command_asks_for_the_same_study(files: list[str], tiny_bert: Path, tmp_path: Path) -> None:
    options = ["--model", tiny_bert, "--batch-size", 8, "--learning-rate", "0.005", "--max-length", 32]
    options += ["--dtype", "float32", "--budget", "rank=2,steps=4", "--budget", "rank=4,steps=4", "--seeds", "7,"]
    options += ["--methods", "lora,lorpa:wide(initial_rank=8, form='outer')", "--target-modules", "query,value"]
    assert run("compare", *files, *options, "--output-dir", tmp_path / "first").exit_code == 0
    first = peftprune.Comparison.load(tmp_path / "first")
    program, *words = shlex.split(command(first.request))
    assert program == "peftprune"
    assert words[words.index("--threads") + 1] == str(first.request["threads"])
    assert run(*words, "--output-dir", tmp_path / "second").exit_code == 0
    second = peftprune.Comparison.load(tmp_path / "second")
    assert second.request | {"place": first.request["place"]} == first.request
    for (_, a), (_, b) in zip(first.arms(), second.arms(), strict=True):
        assert (a.path / "predictions.parquet").read_bytes() == (b.path / "predictions.parquet").read_bytes()


@pytest.mark.parametrize(
    ("written", "asked", "length"),
    [
        ({"budget": "rank=8,steps=12"}, {"epochs": 1.0}, ("rank=8", 1.0)),
        ({"budget": ["rank=8,steps=12", "paper"]}, {"epochs": 1.0}, ("rank=8", 1.0)),
        ({"epochs": 2}, {"budget": ["rank=8,steps=20"]}, ("rank=8,steps=20", None)),
        ({"epochs": 2}, {"budget": ["rank=4"]}, ("rank=4", 2)),
        ({"budget": "rank=8,steps=12"}, {"budget": ["rank=2"]}, ("rank=2", None)),
    ],
)
def test_a_length_that_is_asked_for_replaces_the_files(written: dict, asked: dict, length: tuple) -> None:
    found = overridden(written, asked)
    assert (next(iter(parse_budgets(found["budget"]))), found.get("epochs")) == length


def test_seeds_and_targets_may_be_text(tmp_path: Path) -> None:
    assert parse_seeds("11,12") == [11, 12]
    assert parse_seeds("3") == [0, 1, 2]
    assert parse_seeds("7,") == [7]
    assert parse_targets("query, value") == parse_targets(["query", "value"]) == ["query", "value"]
    assert parse_targets("all-linear") == "all-linear"
    assert read_study_file(write(tmp_path, "batch_size: 1e1"))["batch_size"] == 10
    with pytest.raises(UsageError, match="'seeds' occurs twice"):
        read_study_file(write(tmp_path, "seeds: 1\nseeds: 2"))


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        (["lora"], "lora"),
        ([peftprune.methods.registry.load("lorpa")], "lorpa"),
        (
            [peftprune.methods.registry.load("lorpa")(initial_rank=8, form="outer")],
            "lorpa(initial_rank=8,form='outer')",
        ),
    ],
)
def test_objects_of_ours_have_a_text(methods: Any, text: str) -> None:
    (spec,) = peftprune.methods.request.parse(methods)
    assert spec.text == text
    (again,) = peftprune.methods.request.parse(text)
    assert vars(again.build().config) == vars(spec.build().config)


def test_stored_paths_hold_from_any_folder_and_after_a_move(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, elsewhere = (tmp_path / name for name in ("old", "new", "elsewhere"))
    shutil.copytree(tiny_bert, old / "model")
    elsewhere.mkdir()
    regression_task(old)
    (old / "train.csv").rename(old / "rows.csv")
    (old / "mine.py").write_text("import peftprune\nclass Mine(peftprune.RankPruningStrategy):\n    name = 'mine'\n")
    monkeypatch.chdir(old)
    options = ["--train-file", "rows.csv", "--test-file", "test.csv", "--text", "sentence", "--label", "score"]
    options += ["--regression", "--model", "model", "--budget", "rank=2,steps=1", "--target-modules", "query"]
    options += ["--methods", "mine.py:Mine()", "--max-length", 32, "--threads", 1, "--output-dir", "study"]
    assert run("compare", *options).exit_code == 0
    for root in (old, new):
        if root == new:
            old.rename(new)
        monkeypatch.chdir(elsewhere)
        study = peftprune.Comparison.load(root / "study")
        words = shlex.split(command(located(study.request, study.path)))
        for flag, name in {"model": "model", "train-file": "rows.csv", "test-file": "test.csv"}.items():
            assert words[words.index(f"--{flag}") + 1] == str(root / name)
        assert words[words.index("--methods") + 1] == f"{root / 'mine.py'}:Mine()"
        study.export(elsewhere / root.name, method="mine", format="merged")
        monkeypatch.chdir(root)
        again = run("compare", *options)
        assert (again.exit_code, "mine" in again.stdout) == (0, True)
    # A name on the hub is not a path.
    assert located(study.request | {"model": "gpt2"}, study.path)["model"] == "gpt2"
    assert located({n: v for n, v in study.request.items() if n != "place"}, study.path)["model"] == "model"


def test_what_lives_in_a_program_has_no_command(tiny_bert: Path, tmp_path: Path) -> None:
    class Mine(peftprune.RankPruningStrategy):
        name = "mine"

    given = DEFAULTS | {"model": tiny_bert, "budget": "rank=2,steps=2", "target_modules": "attention"}
    study = peftprune.compare([Mine], classification_task(), output_dir=tmp_path / "a", **given)
    assert command(study.request) == ""
    study = peftprune.compare("lora", classification_task(), output_dir=tmp_path / "b", **given)
    assert command(study.request) == ""


def test_the_command_line_has_the_defaults_of_the_function() -> None:
    signature = inspect.signature(peftprune.compare).parameters
    click = typer.main.get_command(app).commands["compare"]  # type: ignore[attr-defined]
    shared = {p.name: p.default for p in click.params if p.name in signature}
    assert set(signature) - set(shared) == {"progress"}
    said = {name: value for name, value in shared.items() if value is not None}
    said |= {name: int(said[name]) for name in ("seeds", "tuning_seeds")}
    said["methods"] = tuple(said["methods"].split(","))
    (said["budget"],) = said["budget"]
    assert said == {name: signature[name].default for name in said}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"task": []}, "names no task"),
        ({"task": "rte,"}, "names no task"),
        ({"task": ["entailment-mini", "entailment-mini"]}, "'entailment-mini' occurs twice"),
        ({"budget": []}, "names no budget"),
        ({"budget": ["rank=8", "rank=8"]}, "'rank=8' occurs twice"),
        ({"budget": ["rank=8", "rank=2,epochs=1"], "epochs": 2}, "named beside the budget's length"),
        ({"budget": 8}, "budget: 8 has the wrong type. Write rank=8"),
        ({"budget": ["rank=2", 8]}, "budget: 8 has the wrong type"),
        ({"budget": ["rank=2", "steps=12"]}, "steps.* must name one of rank.*quotes"),
        ({"task": 3}, "task: 3 has the wrong type. Write rte"),
        ({"task": [None]}, "task: .* has the wrong type"),
        ({"methods": 3}, "methods: 3 are neither text nor a list"),
        ({"methods": range(10**30)}, "methods: range.* are neither text nor a list"),
        ({"task": range(10**30)}, "task: 0 has the wrong type"),
        ({"methods": {"lora": 1}}, "methods: .* are neither text nor a list"),
        ({"target_modules": 3}, "target_modules: 3 has the wrong type"),
        ({"target_modules": []}, "target_modules: .* names nothing"),
        ({"seeds": 2.0}, "seeds: 2.0 are neither"),
        ({"seeds": True}, "seeds: True are neither"),
        ({"seeds": "x"}, "seeds: 'x' is neither"),
        ({"seeds": [2**40]}, "seeds: .* are not distinct whole numbers"),
        ({"seeds": range(10**30)}, "seeds: range.* make at least 1,000,001 arms, 11 days"),
        ({"seeds": b"ab"}, "seeds: b'ab' are neither"),
        ({"seeds": "9" * 5000}, "seeds: '999.* is neither a number nor a list"),
        ({"budget": "rank=" + "9" * 5000}, "budget.rank: '999.* is not a whole number"),
        ({"budget": "rank=1_"}, "budget.rank: '1_' is not a whole number"),
        ({"model": 3}, "model: 3 is not a name or path"),
        ({"model": None}, "model: None is not a name or path"),
        ({"model": "~nobody-here/model"}, "model: '~nobody-here/model' does not exist"),
        ({"model": "x" * 5000}, "model: 'xxx.* is not a model that can be found"),
        ({"output_dir": "a\0b"}, "output_dir: 'a.x00b' is not a name or path"),
        ({"task": "rte", "data_dir": "x" * 5000}, "data_dir: 'xxx.* is not a folder"),
        ({"methods": "x" * 5000 + ".py:X"}, "method: 'xxx.* is not a file"),
        ({"methods": "lorpa(initial_rank={[]: 1})"}, "has options that are not name=value pairs"),
        ({"methods": f"lorpa(initial_rank={10**400})"}, "lorpa.initial_rank: 1000* does not fit into 64 bits"),
        ({"methods": [peftprune.RankPruningStrategy]}, "methods: .* is not a method"),
        ({"epochs": 10**5000}, "epochs: the number does not fit into 64 bits"),
        ({"backend": "slurm", "gpus": "1"}, "gpus: '1' is not a number of GPUs"),
        ({"backend": "slurm", "sbatch": 5}, "sbatch: 5 is not text"),
        ({"backend": "ray", "address": 6379}, "address: 6379 is not text"),
        ({"workers": "9" * 5000}, "workers: '999.* is not a number of processes"),
        ({"output_dir": [3]}, "output_dir: .* is not a name or path"),
        ({"data_dir": 3}, "data_dir: 3 is not a name or path"),
        ({"learning_rate": [1, 2]}, "learning_rate: .* is not a number"),
        ({"learning_rate": float("inf")}, "learning_rate: inf is not finite"),
        ({"batch_size": True}, "batch_size: True is not a whole number"),
        ({"checkpoints": False}, "checkpoints: False is not a whole number"),
        ({"max_train_samples": 1.5}, "max_train_samples: 1.5 is not a whole number"),
        ({"dtype": 3}, "dtype: 3 is unknown"),
    ],
)
def test_lists_that_cannot_run_are_refused(asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        peftprune.compare(**({"methods": "lora", "task": "entailment-mini", "output_dir": tmp_path} | asked))
