"""Printed figures: the files of the repository, and refusals of files that would mislead."""

from pathlib import Path

import pandas as pd
import pytest

from peftprune.analysis.published import COLUMNS, published_for, read_published
from peftprune.errors import UsageError

FOLDER = Path(__file__).parent.parent / "benchmarks" / "published"
HEADER = ",".join(COLUMNS)
ROW = "LoRA,330000,RoBERTa-base,rte,accuracy,78.4,5,A paper,Table 1,"


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return read_published(FOLDER)


def test_the_repositorys_figures(published: pd.DataFrame) -> None:
    assert list(published.columns) == [*COLUMNS, "file"]
    assert published.groupby("file").size().tolist() == [6 * 11, 1, 5 * 7]
    assert published["value"].between(0, 100).all()
    assert not published.duplicated(["file", "method", "params", "task", "metric"]).any()
    assert published["source"].str.contains("arXiv").all()


def test_printed_averages_are_those_of_the_rows(published: pd.DataFrame) -> None:
    """Guards against slips in copying. Where a task has two figures, papers average them first."""
    for (file, method, params), rows in published.groupby(["file", "method", "params"]):
        printed = rows[rows["task"] == "average"]["value"]
        if printed.empty:
            continue
        tasks = rows[rows["task"] != "average"]
        mean = tasks.groupby(tasks["task"].str.split("-").str[0])["value"].mean().mean()
        decimals = 2 if "adalora" in file else 1
        assert printed.item() == pytest.approx(mean, abs=0.51 * 10**-decimals + 0.002), (method, params, mean)


def test_the_warning(published: pd.DataFrame) -> None:
    lora = published[(published["method"] == "LoRA r=2") & (published["task"] == "rte")]
    assert sorted(lora["value"]) == [79.06, 85.56]
    assert lora["source"].nunique() == 2


def test_several_files_and_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(f"{HEADER}\n{ROW}\n")
    (tmp_path / "a.csv").write_text(f"{HEADER}\nLoRA,,m,rte,accuracy,1.5,,A paper,,\n")
    frame = read_published(tmp_path)
    assert frame["file"].tolist() == ["a.csv", "b.csv"]
    assert frame["params"].isna().tolist() == frame["seeds"].isna().tolist() == [True, False]
    assert frame["value"].tolist() == [1.5, 78.4]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is not a CSV file"),
        ("method,value\nLoRA,1\n", "other columns"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('A paper', '')}\n", r"a\.csv:3.*has no source"),
        (f"{HEADER}\n{ROW.replace('78.4', '78.4%')}\n", r"a\.csv:2.*'78.4%' for value"),
        (f"{HEADER}\n{ROW.replace('330000', '0.33')}\n", r"'0\.33' for params"),
    ],
)
def test_misleading_files_are_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageError, match=word):
        read_published(tmp_path)


def test_a_folder_without_figures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no CSV file"):
        read_published(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        read_published(tmp_path / "none")


def test_figures_for_tasks_come_with_the_package() -> None:
    found = published_for(["mrpc", "cola"])
    assert set(found["task"]) == {"mrpc", "cola"}
    assert list(found.columns) == [*COLUMNS, "file"]
    assert published_for(["entailment-mini"]).empty
