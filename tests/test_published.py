"""Printed figures: the files of the repository."""

import pandas as pd
import pytest

from peftprune.analysis.published import COLUMNS, published_for


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return published_for()


def test_the_repositorys_figures(published: pd.DataFrame) -> None:
    assert list(published.columns) == [*COLUMNS, "file"]
    assert published.groupby("file").size().tolist() == [6 * 11, 1, 5 * 7]
    assert published["value"].between(0, 100).all()
    assert not published.duplicated(["file", "method", "params", "task", "metric"]).any()
    assert published["source"].str.contains("arXiv").all()
    stated = ["method", "model", "task", "metric", "value", "source"]
    assert (published[stated].notna() & (published[stated].astype(str) != "")).all(axis=None)


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


def test_figures_for_tasks_come_with_the_package() -> None:
    found = published_for(["mrpc", "cola"])
    assert set(found["task"]) == {"mrpc", "cola"}
    assert list(found.columns) == [*COLUMNS, "file"]
    assert published_for(["entailment-mini"]).empty
