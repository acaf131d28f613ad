"""What the README and the pages of the documentation say is what there is."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import AutoModelForSequenceClassification

import peftprune
from peftprune.cli.app import app
from peftprune.cli.study_file import read_study_file
from peftprune.methods.registry import names
from peftprune.methods.request import parse
from peftprune.report.figures import KINDS
from peftprune.strategy.budget import parse_budget
from peftprune.study.arguments import parse_budgets
from peftprune.tasks import TASKS
from tests import tiny
from tests.helpers import classification_task
from tests.report_studies import RULES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]
OTHERS = [*PAGES, "CONTRIBUTING.md", "benchmarks/README.md", "notebooks/README.md"]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
KNOWN = ("python", "pip", "make", "vllm", "lm_eval")
"""Programs beside peftprune that the pages call."""


def blocks(page: str, language: str) -> list[tuple[str, bool]]:
    """Returns the code blocks of a page, and whether each is meant to run as it stands."""
    pattern = rf"^(<!-- not run: [^\n]+ -->\n)?```{language}\n(.*?)^```$"
    found = re.findall(pattern, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [(code, not mark) for mark, code in found]


def commands(page: str) -> list[list[str]]:
    lines = "".join(code for code, _ in blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found: list[list[str]] = []
    for line in lines:
        words = shlex.shlex(line, posix=True, punctuation_chars=";")
        words.whitespace_split = True
        found += [list(command) for end, command in groupby(words, lambda word: word == ";") if not end]
    return found


@pytest.mark.parametrize("page", OTHERS)
def test_every_command_of_the_pages_can_be_typed(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for program, *words in commands(page):
        if program == "peftprune":
            check_command(words)
            continue
        assert program in KNOWN, program
        if program == "make":
            assert next(word for word in words if not word.startswith("-")) in targets
        if program == "pip":
            named = [found for word in words for found in re.findall(r"\[(.+)\]", word)]
            assert {name for found in named for name in found.split(",")} <= set(extras)
        if program == "python" and words[0] != "-m":
            assert (ROOT / words[0]).is_file()


def check_command(words: list[str]) -> None:
    """Parses a command of peftprune and what its options name, without running it."""
    if words[0] not in COMMANDS:
        assert words[0] == "--version", words
        return
    given = COMMANDS[words[0]].make_context(words[0], words[1:]).params
    if "methods" in given:
        assert parse(given["methods"])
        assert set(given["task"].split(",")) <= {task.name for task in TASKS.values()}
        budgets = [given["budget"]] if isinstance(given["budget"], str) else given["budget"]
        assert all(budget == "paper" or parse_budget(budget) for budget in budgets)
    assert words[0] != "plot" or given["kind"] in KINDS


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_in_a_sentence_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    options = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    options |= {"--version", "--help", "--install-completion", "--max-lora-rank"}
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        first, *rest = code.split()
        if first == "peftprune" and rest and re.fullmatch(r"[a-z-]+", rest[0]):
            assert rest[0] in {*COMMANDS, *options}, code
        if first in ("peftprune", *options) or first.startswith("--"):
            assert {word for word in code.split() if word.startswith("--")} <= options, code


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_the_pages_compiles_and_runs(
    page: str, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(page, "python")
    for code, _ in found:
        compile(code, page, "exec")
    real = peftprune.compare
    small = {"model": tiny_bert, "budget": "rank=2,steps=12", "batch_size": 8, "max_length": 32}

    def compare(methods: Any, task: Any = None, **options: Any) -> Any:
        """Compares what the page compares, on a task and a model that take seconds."""
        assert set(options) <= {"data_dir", "budget", "seeds", "epochs", "max_train_samples", "output_dir"}
        small["output_dir"] = options.get("output_dir", tmp_path / "study")
        return real(methods, classification_task(), workers=1, **small)

    monkeypatch.setattr(peftprune, "compare", compare)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.py").write_text("\n".join(code for code, runs in found if runs))
    spec = importlib.util.spec_from_file_location("page", tmp_path / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "page", module)
    spec.loader.exec_module(module)
    assert not getattr(getattr(module, "result", None), "failures", {})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize("page", ["README.md", "docs/trainer.md"])
def test_the_callback_of_the_pages_trains_what_the_page_on_export_loads(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batch = tiny.random_batch(batch=48)
    train = [{name: values[i] for name, values in batch.items()} for i in range(48)]
    tiny.tiny_bert(layers=1, width=64).save_pretrained("base")
    model, base = (AutoModelForSequenceClassification.from_pretrained("base") for _ in range(2))
    exec(left_to_the_reader(page), {"model": model, "base": base, "train": train})
    found: dict[str, Any] = {}
    exec(left_to_the_reader("docs/export.md"), found)
    # Query and value, 64 wide, at the budget's rank 8.
    assert sum(p.numel() for n, p in found["model"].named_parameters() if "lora_" in n) == 2 * 8 * (64 + 64)


def left_to_the_reader(page: str) -> str:
    """The code that needs the reader's model or data."""
    return "".join(code for code, runs in blocks(page, "python") if not runs)


@pytest.mark.parametrize("page", [page for page in OTHERS if blocks(page, "yaml")])
def test_the_study_files_of_the_pages_are_read(page: str, tmp_path: Path) -> None:
    for code, _ in blocks(page, "yaml"):
        (tmp_path / "study.yaml").write_text(code)
        given = inspect.signature(peftprune.compare).bind(**read_study_file(tmp_path / "study.yaml")).arguments
        assert parse(given["methods"])
        assert parse_budgets(given["budget"])
        assert set(given["task"]) <= set(TASKS)


@pytest.mark.parametrize("page", OTHERS)
def test_no_block_of_the_pages_escapes_these_tests(page: str) -> None:
    languages = re.findall(r"^ *```(\w+)", (ROOT / page).read_text(), re.MULTILINE)
    assert len(languages) == sum(len(blocks(page, language)) for language in ("bash", "python", "yaml"))
    assert page in ("README.md", "docs/trainer.md", "docs/export.md") or not left_to_the_reader(page)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    built = {"api.md", "methods/index.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        target = link.partition("#")[0]
        if target and ":" not in target and not (page.startswith("docs/") and target in built):
            assert ((ROOT / page).parent / target).exists(), link


def test_the_strategy_in_the_documentation_runs_beside_the_built_in_ones(tiny_bert: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "own_strategy.py"
    assert example.read_text() in (ROOT / "docs" / "own-method.md").read_text()
    result = peftprune.compare(
        f"lora,lorpa(initial_rank=8),{example}:LargestB",
        classification_task(),
        model=tiny_bert,
        budget="rank=3,steps=12",
        batch_size=8,
        max_length=32,
        output_dir=tmp_path,
    )
    table = result.table().set_index("method")
    assert list(table.index) == ["lora", "lorpa", "largest-b"]
    assert set(table["status"]) == {"done"}, result.failures
    assert table["final_params"].nunique() == 1
    assert table.loc["largest-b", "peak_params"] == 2 * table.loc["lora", "peak_params"]


def test_every_registered_method_is_in_the_table_of_methods() -> None:
    section = README.split("## Methods\n")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("|")]
    assert sorted(re.findall(r"`([\w-]+)`", "\n".join(rows))) == sorted(names())


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_exist(target: str) -> None:
    assert f"make {target} " in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_demo_can_reach_a_verdict() -> None:
    command = re.search(r"peftprune compare (.*?)\n\t@", (ROOT / "Makefile").read_text(), re.DOTALL)
    assert command is not None
    words = shlex.split(command[1].replace("\\\n", ""))
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert [spec.label for spec in parse(options["--methods"])] == ["lora", "prilora", "head-only"]
    assert int(options["--seeds"]) == 3
    assert "The demo trains LoRA, PRILoRA and the\nhead alone with three seeds" in README


def test_the_report_has_the_rules_of_the_page() -> None:
    section = (ROOT / "docs/fairness.md").read_text().split("## What is kept equal\n")[1].split("\n## ")[0]
    assert re.findall(r"^\d+\. (.+)$", section, re.MULTILINE) == RULES


def test_every_public_name_can_be_imported() -> None:
    for name in peftprune.__all__:
        assert getattr(peftprune, name) is not None


def test_files_named_in_the_contributing_guide_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`([\w/]+\.py)`", guide):
        assert (ROOT / name).exists() or (ROOT / "peftprune" / name).exists(), name


@pytest.mark.parametrize("document", OTHERS)
def test_every_name_of_the_package_in_the_documents_exists(document: str) -> None:
    for name in set(re.findall(r"\bpeftprune(?:\.[A-Za-z_]\w*)+", (ROOT / document).read_text())):
        pkgutil.resolve_name(name)


def test_the_benchmarks_tables_are_those_of_the_results() -> None:
    subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, check=True)
    for name in re.findall(r"<!-- table: ([\w-]+) -->", (ROOT / "benchmarks" / "README.md").read_text()):
        assert (ROOT / "benchmarks" / "results" / f"{name}.json").is_file()
