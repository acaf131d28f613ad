"""Requests of wrong types and ranges, made at random: only usage errors come out, and nothing is written.

`Started` replaces training, which a right request reaches after its study is planned and stored, and the analysis of a
stored study.
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import peftprune
from peftprune.analysis.frames import Frames
from peftprune.cli.app import app
from peftprune.errors import UsageError
from peftprune.methods.registry import load, names
from peftprune.strategy.budget import Budget
from peftprune.study.execution.backend import Backend
from tests.helpers import classification_task, texts

STORED = Path(__file__).parent / "data" / "stored_study"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
NUMBERS = (0, -1, 1, 2, 8, 3.0, 0.5, 2**31, 2**63, 10**30, 10**400, 1e-300, 1e300, float("nan"), float("inf"))
WORDS = (
    "",
    " ",
    ",",
    "x",
    "lora",
    "1e-3",
    "1_",
    "²",
    "rank=8",
    "[",
    "é\u2028",
    "~nobody-here/x",
    "a" * 300,
    "9" * 5000,
)
NESTED = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from([*NUMBERS, *WORDS]),
        st.text("aZ09=(),:.'\"[]-_ \n\té", max_size=8).filter(lambda text: ".." not in text),
        st.binary(max_size=2),
        st.dates(datetime.date(1000, 1, 1)),
    ),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*WORDS[:5], "rank"]), inner, max_size=2)
    ),
    max_leaves=4,
)
"""What YAML can hold."""
OBJECTS = st.sampled_from(
    ["a\0b", object, peftprune.RankPruningStrategy, 10**5000, (1, 2), {1}, 1j, range(10**30), Path("x"), Budget(rank=2)]
)
"""What only Python can hold."""
BUDGETS = st.lists(
    st.tuples(st.sampled_from([f.name for f in fields(Budget)]), st.one_of(NESTED, st.sampled_from(NUMBERS))),
    max_size=3,
).map(lambda parts: ",".join(f"{name}={value}" for name, value in parts))


@st.composite
def methods(draw: st.DrawFn) -> str:
    """A method with an option of it and a value that may fit."""
    name = draw(st.sampled_from(names()))
    known = [f.name for f in fields(load(name).Config)]
    value = draw(
        st.one_of(NESTED, st.sampled_from(NUMBERS), st.sampled_from(["True", "'keep'", "{[]: 1}", "x", "-" * 300]))
    )
    option = draw(st.sampled_from([*known, "x"]))
    return f"{name}{draw(st.sampled_from(['', ':a', ':a:b', ':']))}({option}={value})"


RIGHT: dict[str, list[Any]] = {
    "methods": ["lora", "dora,lorpa:r4(initial_rank=4)", ["lora", "prilora(sparsity=0.2)"]],
    "budget": ["rank=2", "paper", "params=3000,count=nonzero", ["rank=1,steps=5", "rank=2"]],
    "seeds": [1, "3", "11,12", [5]],
    "target_modules": ["attention", "all-linear", "query,value", ["query"]],
    "epochs": [1, 0.5],
    "learning_rate": [1e-3],
    "batch_size": [1, 8],
    "max_length": [32, 16],
    "dtype": ["float32", "auto"],
    "select": ["last", "paper", "validation"],
    "base_dtype": ["bfloat16"],
    "workers": ["auto", 2],
    "backend": ["local", "slurm"],
    "threads": [1],
    "gpus": [0.5],
    "sbatch": ["--partition=gpu"],
    "output_dir": ["study", "a/b"],
    "progress": [False],
}
ARGUMENTS = [name for name in COMMANDS["compare"].params if name.name not in ("config", "debug", "help")]
NAMES = [p.name for p in ARGUMENTS if p.name in peftprune.compare.__annotations__]


class Started(BaseException):
    """Training, or the analysis of a stored study, would begin."""


@pytest.fixture(scope="module")
def here(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a model, data, a study and an adapter; nothing trains, and no host is reachable."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(tiny_bert, folder / "model")
    shutil.copytree(STORED / "study", folder / "stored")
    shutil.copytree(next((folder / "stored" / "arms").glob("lora-s0-*")) / "adapter", folder / "adapter")
    for name, size in (("train.csv", 24), ("test.csv", 8)):
        rows = [f"{text},{label}" for text, label in zip(*texts(size, size), strict=True)]
        (folder / name).write_text("\n".join(["t,l", *rows]) + "\n")
    (folder / "other.pkl").write_bytes(b"no work")

    def start(*args: Any, **options: Any) -> None:
        raise Started

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("unreachable")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Backend, "run", start)
        patch.setattr(Frames, "__init__", start)
        patch.setattr(torch, "set_num_threads", lambda number: None)
        patch.setattr("socket.getaddrinfo", unreachable)
        patch.setattr("socket.create_connection", unreachable)
        yield folder


def search(examples: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Checks so many requests, the same ones in every run."""
    quiet = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    quiet(given(strategy)(check))()


def refused(request: Callable[[], Any], folder: Path) -> None:
    """Checks that a request is refused in a line per method and writes nothing, or that training would begin."""
    before = set(folder.rglob("*"))
    message = ""
    try:
        request()
    except Started:
        pass
    except UsageError as error:
        message = str(error)
    written = set(folder.rglob("*")) - before
    for path in sorted(written, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert all(": " in line for line in message.split("\n")[1:])
    assert not (message and written)


def run(*words: str) -> None:
    """Runs a command. Raises UsageError where it is refused, and fails where it fails otherwise."""
    result = CliRunner().invoke(app, list(words))
    # The stored study has failed arms, which an audit tells.
    told = words[0] == "audit" and result.exit_code == 1 and "contradictions" in result.output
    assert told or result.exit_code in (0, 2), (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert result.stderr.startswith(("Usage:", "error: ")), result.stderr
        raise UsageError(result.stderr.removesuffix("\n") if result.stderr.startswith("error") else "usage")


def sizes(quick: int) -> pytest.MarkDecorator:
    """The number of requests, which is ten times as large among the slow tests."""
    return pytest.mark.parametrize("examples", [quick, pytest.param(10 * quick, marks=pytest.mark.slow)])


@sizes(100)
def test_compare_refuses_what_it_cannot_run(examples: int, here: Path) -> None:
    base = {"methods": "lora", "task": classification_task(8), "model": here / "model", "budget": "rank=2"}
    base |= {"max_length": 32, "output_dir": "study"}
    odd = st.one_of(NESTED, OBJECTS)
    values = {name: st.one_of(odd, st.sampled_from(RIGHT[name])) if name in RIGHT else odd for name in NAMES}
    values["methods"] |= methods() | st.lists(methods(), max_size=2)
    values["budget"] |= BUDGETS | st.lists(BUDGETS, max_size=2)
    changes = st.lists(st.sampled_from(NAMES), max_size=3, unique=True).flatmap(
        lambda some: st.fixed_dictionaries({name: values[name] for name in some})
    )
    search(examples, changes, lambda change: refused(lambda: peftprune.compare(**{**base, **change}), here))


@sizes(45)
def test_a_study_file_is_refused_where_it_cannot_run(examples: int, here: Path) -> None:
    own = {"train_file": "train.csv", "test_file": "test.csv", "text": "t", "label": "l"}
    base = {"methods": "lora", "task": own, "model": "./model", "budget": "rank=2", "max_length": 32, "output_dir": "s"}
    values = {name: st.one_of(NESTED, st.sampled_from(RIGHT.get(name, [None]))) for name in [*NAMES, "x"]}
    values["task"] |= st.dictionaries(
        st.sampled_from([*own, "name", "metrics", "kind", "regression"]), NESTED, max_size=2
    ).map(lambda change: {**own, **change})
    values["budget"] |= BUDGETS | st.dictionaries(st.sampled_from([f.name for f in fields(Budget)]), NESTED, max_size=3)
    values["methods"] |= methods() | st.lists(methods(), max_size=2)
    changes = st.lists(st.sampled_from([*NAMES, "x"]), max_size=3, unique=True).flatmap(
        lambda some: st.fixed_dictionaries({name: values[name] for name in some})
    )
    written = changes.map(lambda change: yaml.safe_dump({**base, **change}, allow_unicode=True))
    bits = st.sampled_from(
        [*WORDS, *base, ": ", "\n", "- ", "[", "{", "}", "!!int ", "!!map ", "&a ", "*a", "<<", "2024-13-45", "'", "\0"]
    )
    loose = st.lists(bits, max_size=6).map(lambda parts: "task: entailment\n" + "".join(parts))

    def check(text: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            refused(lambda: run("compare", "--config", file.name), here)

    search(examples, st.one_of(written, written, loose), check)


@sizes(55)
def test_every_command_refuses_what_it_cannot_run(examples: int, here: Path) -> None:
    paths = ["stored", "adapter", "nowhere", "train.csv", "other.pkl", "x" * 300, "~nobody-here/x"]
    choices: dict[str, list[str]] = {
        **{name: [str(v) for v in right if not isinstance(v, list)] for name, right in RIGHT.items()},
        **dict.fromkeys(("study", "adapter", "work", "config", "out"), paths),
        "model": ["./model"],
        "task": ["verdicts", "rte", "entailment-mini"],
        "train_file": ["train.csv"],
        "test_file": ["test.csv"],
        "text": ["t"],
        "label": ["l"],
        "kind": ["classification", "training"],
        "format": ["peft", "native", "table", "json", "csv"],
        "method": ["lora", "svd"],
        "seed": ["0", "best"],
        "index": ["0"],
        "alpha": ["16"],
    }
    odd = st.one_of(NESTED.map(str), BUDGETS, methods()).filter(lambda text: "\0" not in text)

    @st.composite
    def words(draw: st.DrawFn) -> list[str]:
        command = draw(st.sampled_from(sorted(COMMANDS)))
        known = [p for p in COMMANDS[command].params if p.name not in ("debug", "push_to_hub", "help")]
        needed = [p for p in known if p.required]
        some = draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        found = [command]
        for p in [*needed, *(p for p in some if p not in needed)]:
            flag = [] if p.param_type_name == "argument" else [p.opts[-1]]
            right = st.sampled_from(choices.get(p.name, ["1"]))
            found += flag if getattr(p, "is_flag", False) else [*flag, draw(st.one_of(right, odd))]
        if command in ("compare", "plan") and "--model" not in found:
            found += ["--model", "./model"]
        if command == "compare" and not {"--task", "--train-file"} & {*found}:
            found += ["--train-file", "train.csv", "--test-file", "test.csv", "--text", "t", "--label", "l"]
        return found

    search(examples, words(), lambda found: refused(lambda: run(*found), here))
