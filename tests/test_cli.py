"""The command line as a user meets it: what it prints, what it exits with, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import typer
from typer.testing import CliRunner, Result

import peftprune as package
from peftprune.cli.app import app
from peftprune.errors import UsageError
from peftprune.study.execution.backend import Backend
from tests.helpers import AFTER_PROGRESS, texts

runner = CliRunner()


def peftprune(*args: object) -> Result:
    return runner.invoke(app, [str(a) for a in args])


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Options that name a small task of the user's own."""
    for name, size, seed in (("train.csv", 48, 1), ("test.csv", 12, 2)):
        found, labels = texts(size, seed)
        pd.DataFrame({"sentence": found, "verdict": ["no" if x else "yes" for x in labels]}).to_csv(
            tmp_path / name, index=False
        )
    names = {"--train-file": "train.csv", "--test-file": "test.csv"}
    paths = [part for option, name in names.items() for part in (option, str(tmp_path / name))]
    return [*paths, "--text", "sentence", "--label", "verdict"]


@pytest.fixture
def small(files: list[str], tiny_bert: Path, tmp_path: Path) -> list[str]:
    """A comparison that takes seconds."""
    rest = ["--model", tiny_bert, "--batch-size", 8, "--epochs", 2, "--max-length", 32, "--dtype", "float32"]
    return [*files, *map(str, rest), "--budget", "rank=2", "--output-dir", str(tmp_path / "study")]


def test_compare_prints_the_table_and_draws_the_ranks(small: list[str], tmp_path: Path) -> None:
    result = peftprune("compare", *small, "--methods", "lora,lorpa(initial_rank=8)")
    assert result.exit_code == 0, result.output
    for expected in ("lora", "lorpa", "accuracy", "params", "peak params", "baseline", "majority ("):
        assert expected in result.output
    assert "smallest detectable" not in result.output
    assert (
        "smallest detectable"
        in peftprune("compare", *small, "--methods", "lora,lorpa(initial_rank=8)", "--wide").output
    )
    assert (tmp_path / "study" / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_study_is_printed_again_without_torch_until_anything_changes(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compare", *small, "--methods", "lora,vera"]
    first = peftprune(*command)
    script = (
        "import sys; from peftprune.cli.app import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit(len({'torch', 'pandas', 'numpy'} & {*sys.modules}))"
    )
    again = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")

    def compares(*arguments: object) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(package, "compare", lambda **given: (_ for _ in ()).throw(UsageError("compared")))
            return "compared" in peftprune(*arguments).output

    assert compares(*command, "--wide")
    arms = [
        f"study/{file.relative_to(tmp_path / 'study')}" for file in (tmp_path / "study").glob("arms/lora-*/r*.json")
    ]
    for name in ("test.csv", *arms):
        assert not compares(*command)
        times = (tmp_path / name).stat().st_mtime_ns
        os.utime(tmp_path / name, ns=(times, times))  # equal bytes and times: the system still knows of the change
        assert compares(*command), name
        assert peftprune(*command).stdout == first.stdout
    file = next((tmp_path / "study").glob("arms/lora-*/config.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"allocation": {"label": "of another study"}}))
    peftprune(*command)
    assert compares(*command)


def test_a_dry_run_names_what_is_wrong_with_every_method(small: list[str], tmp_path: Path) -> None:
    pairs = zip(small[::2], small[1::2], strict=True)
    rest = [part for pair in pairs if pair[0] not in ("--epochs", "--budget") for part in pair]
    options = ["compare", *rest, "--dry-run", "--methods"]
    wrong = peftprune(*options, "lora,nonsense,lorpa(initial_rank=-1),adalora,elalora:e", "--budget", "rank=2,steps=2")
    assert wrong.exit_code == 2
    lines = wrong.stderr.removeprefix("error: ").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["method:", "lorpa.initial_rank:", "adalora:", "elalora:e:"]
    least = {line.split(":")[0]: int(re.search(r"needs at least (\d+) steps", line)[1]) for line in lines[2:]}  # type: ignore[index]
    for name, steps in least.items():
        assert peftprune(*options, name, "--budget", f"rank=2,steps={steps - 1}").exit_code == 2
        found = peftprune(*options, name, "--budget", f"rank=2,steps={steps}", "--seeds", 2, "--json")
        (row,) = json.loads(found.stdout)["arms"]
        assert (row["method"], row["arms"], row["steps"]) == (name, 2, 2 * steps)
        assert all(row[part] > 0 for part in ("minutes", "memory", "disk", "checkpoints"))
    none = peftprune(*options, "nonsense", "--budget", "rank=2,steps=2", "--seeds", "2..3")
    assert (none.exit_code, none.stderr.count("nonsense"), len(none.stderr.splitlines())) == (2, 1, 1)
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        refused = peftprune(*options, "lora", "--budget", "rank=2", "--output-dir", place)
        assert (refused.exit_code, f"output_dir: {str(place)!r} cannot be written" in refused.stderr) == (2, True)
    assert not (tmp_path / "study").exists()


def test_a_dry_run_counts_what_is_left(small: list[str], tmp_path: Path) -> None:
    assert peftprune("compare", *small, "--methods", "lora").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shown = peftprune("compare", *small, "--methods", "lora,full", "--seeds", 2, "--dry-run").stdout
    assert re.search(r"rank=2 +full +2 +24 ", shown)
    assert re.search(r"rank=2 +lora +1 +12 ", shown)
    assert re.search(r"3 arms, 36 steps: about \d+\.\d minutes with 1 process", " ".join(shown.split()))
    unknown = peftprune("compare", *small, "--methods", "lora", "--report-to", "paper", "--dry-run")
    assert (unknown.exit_code, "report_to: 'paper' is not a tracker" in unknown.stderr) == (2, True)
    other = peftprune("compare", *small, "--methods", "lora", "--learning-rate", "0.1", "--dry-run")
    assert (other.exit_code, "learning_rate: 0.1 is not that of the study" in other.stderr) == (2, True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "nothing is left to train" in peftprune("compare", *small, "--methods", "lora", "--dry-run").stdout


def test_an_interrupt_is_one_line_and_exits_with_130(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Backend, work: Any, reporter: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Backend, "run", interrupted)
    result = peftprune("compare", *small, "--methods", "lora")
    assert (result.exit_code, result.stdout) == (130, "")
    header, left = result.stderr.split("\n", 1)
    assert "1 arms, 1 to train" in header
    assert left == AFTER_PROGRESS + "Stopped. The same command goes on\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_study_goes_on_by_the_same_command(workers: int, small: list[str], tmp_path: Path) -> None:
    options = ["--methods", "lora,dora", "--workers", str(workers), "--checkpoints", "40", "--threads", "1"]
    command = [sys.executable, "-m", "peftprune", "compare", *small, *options, "--epochs", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as study:
        until = time.monotonic() + 600
        while not any((tmp_path / "study").glob("arms/*/checkpoint/checkpoint-*")):
            assert study.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        children = psutil.Process(study.pid).children(recursive=True)
        study.send_signal(signal.SIGINT)
        out, err = study.communicate(timeout=120)
    assert len(children) == workers - 1, "the command trains too"
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert (study.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("Stopped. The same command goes on")
    left = list((tmp_path / "study").glob("arms/*/checkpoint/checkpoint-*"))
    assert left
    assert peftprune("compare", *small, *options, "--epochs", 20).exit_code == 0
    assert len(list((tmp_path / "study").glob("arms/*/result.json"))) == 2
    assert not any(path.exists() for path in left)


def test_one_failed_arm_stops_no_other_and_exits_with_1(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import peftprune\n"
        "class Broken(peftprune.RankPruningStrategy):\n"
        "    name = 'broken'\n"
        "    def decide(self, view):\n"
        "        raise ArithmeticError('went wrong')\n"
    )
    result = peftprune("compare", *small, "--methods", f"{tmp_path}/broken.py:Broken,lora")
    assert result.exit_code == 1
    assert "failed: broken, seed 0: ArithmeticError: went wrong" in result.stderr
    assert "Traceback" not in result.output
    table = {line.split()[0]: line for line in reversed(result.stdout.splitlines()) if line.split()}
    assert re.search(r" 0\.\d{3} ", table["lora"])
    assert table["broken"].split()[-1] == "failed"


def test_a_strategy_that_returns_no_plan_is_told_what_to_return(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text(
        "import peftprune\n"
        "class Silent(peftprune.RankPruningStrategy):\n"
        "    name = 'silent'\n"
        "    def decide(self, view):\n"
        "        pass\n"
    )
    result = peftprune("compare", *small, "--methods", f"{tmp_path}/silent.py:Silent")
    assert result.exit_code == 1
    assert "Return PruningPlan() to change nothing" in result.stderr


def test_a_loss_that_is_not_finite_fails_the_run(small: list[str]) -> None:
    result = peftprune("compare", *small, "--methods", "lora", "--learning-rate", "1e30", "--max-grad-norm", "0")
    assert result.exit_code == 1
    assert "not finite" in result.stderr
    assert "learning_rate" in result.stderr


REFUSED = {
    "unknown method": (["--methods", "lora,lorpaa"], ["lorpaa", "'lorpa'"]),
    "unknown option": (["--methods", "lorpa(initial_ranks=3)"], ["initial_ranks", "initial_rank"]),
    "option out of range": (["--methods", "prilora(sparsity=2)"], ["sparsity", "2", "[0, 1)"]),
    "unknown task": (["--task", "rtee"], ["rtee", "rte"]),
    "missing data folder": (["--task", "rte", "--data-dir", "/no/such/folder"], ["/no/such/folder"]),
    "malformed budget": (["--budget", "rank:8"], ["rank:8", "rank=8"]),
    "budget without a size": (["--budget", "epochs=2"], ["rank"]),
    "rank 0": (["--budget", "rank=0"], ["rank", "0"]),
    "rank above the layer": (["--budget", "rank=33"], ["33", "32"]),
    "budget too small": (["--budget", "params=100"], ["100", "one rank"]),
    "zero seeds": (["--seeds", "0"], ["seeds"]),
    "malformed seeds": (["--seeds", "one"], ["one"]),
    "two lengths of training": (["--budget", "rank=2,epochs=1", "--epochs", "2"], ["epochs"]),
    "missing model": (["--model", "/no/such/model"], ["/no/such/model"]),
    "unknown target": (["--target-modules", "nowhere"], ["nowhere"]),
    "unknown dtype": (["--dtype", "float8"], ["float8"]),
    "negative learning rate": (["--learning-rate", "-1"], ["learning_rate", "-1"]),
    "output folder is a file": (["--output-dir", __file__], [Path(__file__).name, "written"]),
    "half of the files": (["--train-file", "x.csv"], ["--test-file"]),
    "regression without files": (["--regression"], ["--regression"]),
    "a task and files": (["--task", "rte", "--train-file", "x.csv"], ["--task: 'rte'", "--train-file", "Keep"]),
    "a billion seeds": (["--seeds", "1000000000"], ["seeds: '1000000000'", "1,000,000,000 arms", "11,574 days"]),
    "a million arms": (["--seeds", "600000", "--methods", "lora,dora"], ["seeds: 600000", "1,200,000 arms", "13 days"]),
    "a billion epochs": (["--epochs", "1e10"], ["epochs: 10000000000.0", "steps in 4 arms", "years at 1,000 a second"]),
    "a year of steps": (["--budget", f"rank=2,steps={10**18}"], ["budget: 'rank=2,steps=", "126,839,167 years"]),
    "endless epochs": (["--epochs", "1e308"], ["epochs: 1e+308", "below 2^63"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_requests_get_one_message_and_exit_code_2(case: str, tiny_bert: Path, tmp_path: Path) -> None:
    options, expected = REFUSED[case]
    base = ["--model", str(tiny_bert), "--output-dir", str(tmp_path / "study"), "--max-length", "32"]
    result = peftprune("compare", *base, *options)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.output
    assert not (tmp_path / "study").exists()
    for text in expected:
        assert text in result.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "train.csv").unlink(), ["train.csv"]),
        (lambda folder: (folder / "train.csv").write_text(""), ["train.csv", "no rows"]),
        (lambda folder: (folder / "train.csv").write_text("sentence,label\na,b\n"), ["verdict", "label"]),
        (
            lambda folder: (folder / "test.csv").write_text("sentence,verdict\na,perhaps\nb,c\n"),
            ["perhaps", "test.csv"],
        ),
    ],
    ids=["missing file", "empty file", "missing column", "unknown label"],
)
def test_wrong_files_are_refused(change: object, expected: list[str], small: list[str], tmp_path: Path) -> None:
    change(tmp_path)  # type: ignore[operator]
    result = peftprune("compare", *small, "--methods", "lora")
    assert result.exit_code == 2, result.output
    for text in expected:
        assert text in result.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [("class Broken(:", "SyntaxError"), ("import no_such_module", "no_such_module"), ("x = 1", "Broken")],
)
def test_a_strategy_file_that_cannot_be_used_is_refused(code: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(code)
    result = peftprune("compare", "--methods", f"{tmp_path}/mine.py:Broken")
    assert result.exit_code == 2, result.output
    assert "mine.py" in result.stderr
    assert expected in result.stderr


def test_debug_shows_where(tmp_path: Path) -> None:
    result = peftprune("compare", "--methods", "lorpaa", "--debug")
    assert isinstance(result.exception, UsageError)


def test_plan_prints_json_and_nothing_else() -> None:
    targets = ["--model", "roberta-base", "--target-modules", "attention"]
    result = peftprune("plan", *targets, "--methods", "lora,lorpa", "--budget", "rank=8", "--json")
    assert result.exit_code == 0, result.output
    plans = json.loads(result.stdout)["methods"]
    assert plans["lora"]["final_params"] == plans["lorpa"]["final_params"] == 294_912
    assert plans["lorpa"]["peak_params"] == 9_437_184
    assert plans["lora"]["head_params"] == 592_130
    assert set(plans["lora"]["ranks"].values()) == {8}
    assert [p["name"] for p in plans["lorpa"]["phases"]] == ["dense", "pruned"]
    assert sum(p["steps"] for p in plans["lorpa"]["phases"]) == sum(p["steps"] for p in plans["lora"]["phases"])


def test_plan_says_how_many_trials_and_steps_a_study_has() -> None:
    words = ["plan", "--methods", "lora,lorpa", "--budget", "rank=8,steps=100", "--target-modules", "attention"]
    tuned = ["--tune", "learning_rate=1e-3,1e-2", "--tune", "lorpa.initial_rank=32,64", "--tuning-seeds", "3"]
    shown = peftprune(*words, *tuned, "--seeds", "5").output
    text = " ".join(shown.split())
    assert "24 trials of 2,400 steps, 10 final arms of 1,000 steps: 3,400 in all, at most 8,200 where the grid" in text
    found = json.loads(peftprune(*words, *tuned, "--seeds", "5", "--json").stdout)["size"]
    assert found["steps"] == found["trial_steps"] + found["final_steps"] == 3_400
    assert "1 final arms of 100 steps: 100 in all." in peftprune(*words, "--methods", "lora").output
    refused = peftprune(*words, *tuned, "--seeds", "10001,7")
    assert refused.exit_code == 2
    assert "tuning_seeds: [10001]" in refused.output


@pytest.mark.parametrize(
    ("model", "targets", "methods", "rank", "final"),
    [
        ("roberta-large", "attention", "lora", 8, 786_432),
        ("roberta-large", "attention", "lora", 256, 25_165_824),
        ("deberta-v3-base", "all-linear", "lora,prilora", 8, 1_327_104),
    ],
)
def test_published_parameter_counts(model: str, targets: str, methods: str, rank: int, final: int) -> None:
    result = peftprune(
        "plan",
        "--model",
        model,
        "--target-modules",
        targets,
        "--methods",
        methods,
        "--budget",
        f"rank={rank}",
        "--json",
    )
    assert {p["final_params"] for p in json.loads(result.stdout)["methods"].values()} == {final}


def test_plan_methods_and_tasks_print_tables() -> None:
    assert "encoder.layer.0.attention.self.query" in peftprune("plan", "--model", "minilm").output
    shown = peftprune("methods").output
    assert "convention" in shown
    assert "initial_rank" in shown
    assert "mnli" in peftprune("tasks").output


def test_all_linear_says_that_it_leaves_out_the_experts_of_a_mixture(
    files: list[str], tiny_bert: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, MixtralConfig, MixtralForSequenceClassification

    tokenizer, folder = AutoTokenizer.from_pretrained(tiny_bert), tmp_path / "mixture"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        num_local_experts=4,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    MixtralForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    one, router = 16 * 24, 4 * 16
    which = f"mlp.gate, mlp.experts.gate_up_proj, mlp.experts.down_proj ({2 * (4 * 3 * one + router):,} parameters)"
    expected = f"all-linear leaves out {which}: these are not linear layers."
    planned = peftprune("plan", "--model", folder, "--budget", "rank=1")
    assert expected in " ".join(planned.output.split())
    options = ["--model", folder, "--methods", "lora", "--budget", "rank=1,steps=1", "--max-length", 16]
    result = peftprune("compare", *files, *options, "--output-dir", tmp_path / "study")
    assert result.exit_code == 0, result.output
    assert expected in " ".join(result.output.split())
    assert json.loads((tmp_path / "study" / "study.json").read_text())["left_out"].startswith(expected)


@pytest.mark.parametrize(
    ("model", "task", "rate", "file"),
    [
        ("roberta-base", "rte", [3e-5, 5e-5, 7e-5, 9e-5], "run_rte_roberta-base.sh"),
        ("roberta-base", "stsb", [2e-4, 3e-4, 4e-4], "run_stsb_roberta-base.sh"),
        ("roberta-large", "mrpc", 1e-4, "run_mrpc_roberta-large.sh"),
        ("bart-base", "xsum", 2e-4, "run_xsum_bart-base.sh"),
    ],
)
def test_a_plan_shows_what_is_published_and_where(model: str, task: str, rate: Any, file: str) -> None:
    words = ["plan", "--methods", "lorpa", "--model", model, "--task", task, "--budget", "paper"]
    (plan,) = json.loads(peftprune(*words, "--target-modules", "attention", "--json").stdout)["methods"].values()
    found = {value["setting"]: (value["value"], value["source"]) for value in plan["published"]}
    assert found["learning_rate"] == (rate, f"JuHyng/LoRPA@8922807 run_scripts/lorpa/{file}")
    assert found["rank"][0] == (16 if task == "xsum" else 8) == set(plan["ranks"].values()).pop()
    if task == "rte":
        shown = peftprune(*words, "--target-modules", "attention").output
        assert "one of 3e-05, 5e-05" in shown


@pytest.mark.parametrize(("words", "exit_code"), [("--help", 0), ("methods", 0), ("compare --methods lorra", 2)])
def test_help_methods_and_misspelled_ones_need_no_heavy_import(words: str, exit_code: int) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from peftprune.cli.app import app;"
        f"assert CliRunner().invoke(app, {words.split()}).exit_code == {exit_code};"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_options_of_compare_are_grouped_and_show_their_defaults() -> None:
    shown = runner.invoke(app, ["compare", "--help"], env={"COLUMNS": "150"}).output
    places = [shown.index(f"─ {p} ─") for p in ("Study", "Data", "Base model", "Training", "Generation", "Execution")]
    assert places == sorted(places)
    assert re.search(r"--learning-rate .*1e-3", shown)


def test_the_version_is_printed() -> None:
    assert peftprune("--version").stdout == f"{package.__version__}\n"


def test_misspelled_names_get_a_hint() -> None:
    misspelled: dict[str, Any] = {"seed": 3}
    with pytest.raises(UsageError, match=r"seed: 3 is not an argument of compare\. Did you mean 'seeds'"):
        package.compare(**misspelled)
    assert "--seeds" in peftprune("compare", "--seed", "3").output
    assert "Did you mean 'compare'" in peftprune("compere").output
    assert "Did you mean 'lora'" in peftprune("methods", "lore").stderr


def test_dir_shows_the_public_names_alone() -> None:
    assert all(name[0] != "_" for name in dir(package))
    assert "compare" in dir(package)


def test_methods_are_shown_by_name() -> None:
    shown = json.loads(peftprune("methods", "lorpa", "dora", "--json").stdout)["methods"]
    assert [method["name"] for method in shown] == ["lorpa", "dora"]


def test_every_command_has_the_common_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) >= 13
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert options >= {"--json", "--quiet", "-v", "--debug"}, name


def test_json_and_quiet_replace_the_text(small: list[str], tmp_path: Path) -> None:
    result = peftprune("compare", *small, "--methods", "lora", "--json")
    found = json.loads(result.stdout)
    assert found["failed"] == {}
    assert found["table"][0]["method"] == "lora"
    assert found["references"][0]["method"].startswith("majority")
    assert peftprune("compare", *small, "--methods", "lora", "--quiet").output == ""
    plotted = json.loads(peftprune("plot", tmp_path / "study", "--json").stdout)
    assert Path(plotted["path"]).is_file()
