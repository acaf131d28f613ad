"""What the README says is what there is."""

from __future__ import annotations

import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import peftprune
from peftprune.methods.registry import names
from peftprune.methods.request import parse
from tests.helpers import classification_task
from tests.report_studies import RULES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_strategy_in_the_readme_runs_beside_the_built_in_ones(tiny_bert: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "own_strategy.py"
    assert example.read_text() in README
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
    rows = re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)
    assert rows == names()


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


def test_the_report_has_the_rules_of_the_readme() -> None:
    section = README.split("## What is kept equal\n")[1].split("\n## ")[0]
    assert re.findall(r"^\d+\. (.+)$", section, re.MULTILINE) == RULES


def test_every_public_name_can_be_imported() -> None:
    for name in peftprune.__all__:
        assert getattr(peftprune, name) is not None


def test_files_named_in_the_contributing_guide_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`([\w/]+\.py)`", guide):
        assert (ROOT / name).exists() or (ROOT / "peftprune" / name).exists(), name


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "notebooks/README.md"])
def test_every_name_of_the_package_in_the_documents_exists(document: str) -> None:
    for name in set(re.findall(r"\bpeftprune(?:\.[A-Za-z_]\w*)+", (ROOT / document).read_text())):
        pkgutil.resolve_name(name)


def test_the_benchmarks_tables_are_those_of_the_results() -> None:
    subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, check=True)
    for name in re.findall(r"<!-- table: ([\w-]+) -->", (ROOT / "benchmarks" / "README.md").read_text()):
        assert (ROOT / "benchmarks" / "results" / f"{name}.json").is_file()
