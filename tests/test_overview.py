"""The overview that a terminal and a notebook show of a study: it fits, is sorted, and ends in the best method."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pandas.api.types import is_numeric_dtype

from peftprune.analysis.frames import Frames
from peftprune.comparison import Comparison
from peftprune.report.findings import best
from peftprune.report.text import overview_text
from peftprune.stats import Verdict
from tests.stored import store

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    methods, folder = ("plain", "cut", "x-small", "flat", "shared"), tmp_path_factory.mktemp("study")
    return store(folder, methods=methods, seeds=range(3), layers=1, failed=[("cut", 1)])


@pytest.fixture(scope="module")
def frames(study: Comparison) -> Frames:
    return Frames(study)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_it_fits(frames: Frames, width: int) -> None:
    """After a wanted change, write what `shown` holds into the files."""
    shown = overview_text(frames, width)
    assert shown == (DATA / f"overview-{width}.txt").read_text().rstrip()
    assert max(map(len, shown.splitlines())) <= width


def test_repr_is_as_wide_as_the_terminal(study: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert repr(study) == (DATA / "overview-80.txt").read_text().rstrip()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert repr(study) == (DATA / "overview-80.txt").read_text().rstrip(), "shown beside the HTML of a notebook"
    html = study._repr_html_()
    assert html is not None
    assert "<td>majority (1)</td>" in html
    assert "&lt;inf&gt;" in html


def test_a_study_that_cannot_be_read_still_has_a_repr(study: Comparison) -> None:
    broken = Comparison(study.path, {**study.request, "margin": "bleu=-1"})
    assert "margin: " in repr(broken)
    assert broken._repr_html_() is None


def test_every_number_is_in_a_numeric_column(study: Comparison) -> None:
    for name in ("runs", "table", "allocation", "trace", "history", "costs", "against", "pooled", "frontier"):
        frame: pd.DataFrame = getattr(study, name)()
        for column in frame.columns:
            numbers = [v for v in frame[column] if isinstance(v, int | float) and not pd.isna(v)]
            assert not numbers or is_numeric_dtype(frame[column]), (name, column)


@pytest.mark.parametrize(
    ("verdict", "seeds", "needed", "said"),
    [
        (Verdict.NOT_DISTINGUISHABLE, 3, 9.0, "not certain; about 9 seeds would tell a difference of this size"),
        (
            Verdict.UNDECIDED,
            3,
            float("inf"),
            "not certain; only more test examples would tell a difference of this size",
        ),
        (Verdict.CANNOT_REACH_SIGNIFICANCE, 1, float("nan"), "not certain: one seed does not show how seeds vary"),
        (Verdict.WORSE, 3, float("nan"), "95 % interval +0.0030 to +0.0200"),
        (Verdict.NOT_WORSE, 3, float("nan"), "not worse by more than 0.05"),
    ],
)
def test_one_sentence_names_the_best(
    frames: Frames, verdict: Verdict, seeds: int, needed: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = {"difference": 0.012, "low_holm": 0.003, "high_holm": 0.02, "margin": 0.05}
    change |= {"verdict": verdict, "seeds": seeds, "seeds_needed": needed}
    monkeypatch.setattr(frames, "against", frames.against.assign(**change))
    assert best(frames, next(frames.study.cells())) == f"Best mean: shared, +0.012 over plain ({said})."


def test_a_baseline_that_leads_is_compared_with_the_next(study: Comparison) -> None:
    frames = Frames(study, "shared")
    row = frames.against.query("metric == 'accuracy' and method == 'cut'").iloc[0]
    assert best(frames, next(frames.study.cells())).startswith(
        f"Best mean: shared, +{-row['difference']:.3f} over cut ("
    )
