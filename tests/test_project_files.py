"""The files by which a project is joined and published parse, and agree with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import peftprune

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = PROJECT["requires-python"]
MAKEFILE = (ROOT / "Makefile").read_text()
FILES = [
    *ROOT.glob(".github/**/*.yml"),
    *ROOT.glob("*.cff"),
    ROOT / ".pre-commit-config.yaml",
    ROOT / "recipe/meta.yaml",
]
CONDA = {"pytorch": "torch", "huggingface_hub": "huggingface-hub", "matplotlib-base": "matplotlib"}


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def bounds() -> dict[str, str]:
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", wanted).groups() for wanted in PROJECT["dependencies"])  # type: ignore[union-attr]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_parses(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_all_files_name_one_version() -> None:
    assert PROJECT["version"] == peftprune.__version__ == read("CITATION.cff")["version"]
    assert PROJECT["version"] == read("recipe/meta.yaml")["package"]["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["license"] == read("CITATION.cff")["license"] == read("recipe/meta.yaml")["about"]["license"]


def test_a_source_distribution_has_what_the_tests_read() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    others = ["tests", "docs", "notebooks", "examples", "benchmarks", "Makefile", "paper.md", "paper.bib"]
    needed = (
        {path.relative_to(ROOT).parts[0] for path in FILES} | {path.name for path in ROOT.glob("*.txt")} | {*others}
    )
    assert needed <= set(settings["include"])
    assert all((ROOT / name).exists() for name in settings["include"])


def test_the_recipe_requires_what_the_package_requires() -> None:
    needed = read("recipe/meta.yaml")["requirements"]["run"]
    found = dict(line.split(" >=") for line in needed)
    assert found.pop("python") == PYTHON.removeprefix(">=")
    assert {CONDA.get(name, name): version for name, version in found.items()} == bounds()


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    torch = re.search(r"^TORCH_OLDEST \?= ([\d.]+)$", MAKEFILE, re.MULTILINE)
    assert torch is not None
    assert dict(line.split("==") for line in lines if line[0] != "#") | {"torch": torch[1]} == bounds()


def test_the_workflow_runs_targets_that_exist_from_the_oldest_python_on() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    versions = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    assert min(versions) == PYTHON.removeprefix(">=")
    for target in re.findall(r"make ([\w-]+)", " ".join(step.get("run", "") for step in steps)):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_the_hooks_are_the_pinned_ones() -> None:
    ruff = next(repo for repo in read(".pre-commit-config.yaml")["repos"] if "ruff" in repo["repo"])
    assert f"ruff=={ruff['rev'].removeprefix('v')}\n" in (ROOT / "constraints.txt").read_text()


def test_the_paper_cites_what_its_bibliography_has() -> None:
    paper = (ROOT / "paper.md").read_text()
    head = yaml.safe_load(paper.split("---")[1])
    assert [author["name"] for author in head["authors"]] == ["peftprune developers"]
    entries = re.findall(r"^@\w+\{(\w+),", (ROOT / head["bibliography"]).read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(set(re.findall(r"(?<!\w)@(\w+)", paper)))
    parts = ["Summary", "Statement of need", "State of the field", "Software design", "Research impact statement"]
    assert re.findall("^# (.+)$", paper, re.MULTILINE) == [
        *parts,
        "AI usage disclosure",
        "Acknowledgements",
        "References",
    ]
    assert 750 <= len(paper.split()) <= 1750
