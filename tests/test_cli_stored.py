"""`peftprune plot` and `peftprune report` on stored studies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stored import store
from tests.test_cli import peftprune


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("study"), tasks=["rte", "mrpc"], layers=2).path


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("b.pdf", b"%PDF"), ("c.svg", b"<?xml")])
def test_plot_writes_the_format_of_the_ending(folder: Path, tmp_path: Path, name: str, magic: bytes) -> None:
    result = peftprune("plot", folder, "--kind", "quality", "--task", "rte", "--out", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).read_bytes().startswith(magic)


@pytest.mark.slow
def test_plot_and_report_have_a_place_of_their_own(folder: Path) -> None:
    assert peftprune("plot", folder).exit_code == 0
    assert (folder / "ranks.png").is_file()
    assert peftprune("report", folder).exit_code == 0
    assert (folder / "report.html").read_text().lower().startswith("<!doctype html>")


@pytest.mark.parametrize("format", ["markdown", "latex", "csv", "json"])
def test_tables_are_printed_or_written(folder: Path, tmp_path: Path, format: str) -> None:
    printed = peftprune("report", folder, "--format", format, "--task", "mrpc")
    assert printed.exit_code == 0, printed.output
    assert "shared" in printed.stdout
    assert "rte" not in printed.stdout
    if format == "json":
        json.loads(printed.stdout)
    assert peftprune("report", folder, "--format", format, "--task", "mrpc", "--out", tmp_path / "t").exit_code == 0
    assert (tmp_path / "t").read_text() == printed.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plot", "nowhere"], "holds no study.json"),
        (["plot", "STUDY", "--kind", "rank"], "Did you mean 'ranks'"),
        (["plot", "STUDY", "--budget", "rank=3"], "budget: 'rank=3' is not in the study. It has: rank=8"),
        (["plot", "STUDY", "--kind", "average-ranks", "--task", "rte"], "has nothing to show"),
        (["plot", "STUDY", "--out", "x.docx"], "does not end in a known format"),
        (["report", "STUDY", "--format", "word"], "word"),
        (["report", "STUDY", "--baseline", "lora"], "baseline: 'lora' is not in the study"),
        (["report", "STUDY", "--task", "cola"], "task: 'cola' is not in the study"),
        (["report", "STUDY", "--out", "/proc/none/report.html"], "cannot be written"),
        (["report", "STUDY", "--format", "csv", "--out", "/proc/none/table.csv"], "cannot be written"),
    ],
)
def test_wrong_requests_get_one_message(folder: Path, words: list[str], message: str) -> None:
    result = peftprune(*[folder if w == "STUDY" else w for w in words])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
