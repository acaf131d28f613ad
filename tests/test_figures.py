"""Every kind of figure, for small and large studies, failed arms and long names: it draws, fits, and is saved whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.text import Text

from peftprune.analysis.frames import Frames
from peftprune.comparison import Comparison
from peftprune.errors import UsageError
from peftprune.files import write_json
from peftprune.report.figures import KINDS, draw
from tests.stored import ENCODER_DECODER, store

LONG = "cut:a-label-that-someone-made-very-long-to-hold-all-its-options"
STUDIES = {
    "one method": {"methods": ["plain"], "seeds": [0]},
    "one seed": {"seeds": [3]},
    "tasks and budgets": {"tasks": ["rte", "mrpc"], "budgets": ["rank=2", "rank=8"]},
    "ten methods": {"methods": [*(f"{m}-{i}" for i in range(3) for m in ("plain", "cut", "shared")), "sparse"]},
    "48 layers": {"layers": 48},
    "encoder-decoder": {"layers": 12, "kinds": ENCODER_DECODER},
    "a failed arm": {"failed": [("cut", 0), ("sparse", 0), ("sparse", 1)]},
    "long names": {"methods": ["plain", LONG, "sparse:" + LONG, "shared:" + LONG], "tasks": ["rte", "mrpc"]},
}


@pytest.fixture(scope="module", params=STUDIES, ids=list(STUDIES))
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return store(tmp_path_factory.mktemp("study"), **STUDIES[request.param])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_or_says_what_is_missing(study: Comparison, kind: str) -> None:
    before = dict(mpl.rcParams)
    try:
        figure = draw(Frames(study), kind)
    except UsageError:
        # Other tests say which study has nothing to show; these kinds always have.
        assert kind not in {"ranks", "lines", "quality", "curves", "cost"}
        return
    assert dict(mpl.rcParams) == before
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for ax in (a for a in figure.axes if a.axison):
        for text in [
            ax.title,
            *_drawn(ax.get_xticklabels(), ax.get_xlim(), 0),
            *_drawn(ax.get_yticklabels(), ax.get_ylim(), 1),
            *ax.texts,
        ]:
            if text.get_visible() and text.get_text().strip():
                box = text.get_window_extent()
                assert min(box.x0, box.y0) >= -1, text
                assert box.x1 <= width + 1, text
                assert box.y1 <= height + 1, text
    titles = [ax.title.get_window_extent() for ax in figure.axes if ax.title.get_text()]
    assert not any(a.overlaps(b) for a, b in combinations(titles, 2))


def _drawn(labels: Sequence[Any], limits: tuple[float, float], axis: int) -> list[Any]:
    """Tick labels beyond the limits exist, but are not drawn."""
    return [t for t in labels if min(limits) <= t.get_position()[axis] <= max(limits)]


def test_a_study_of_all_sorts_has_every_kind(tmp_path: Path) -> None:
    study = store(tmp_path, tasks=["rte", "mrpc"])
    for kind in KINDS.keys() - {"rates", "trials", "robustness", "decomposition"}:
        assert draw(Frames(study), kind).axes


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("training", {"methods": ["plain", "plain-2"]}),
        ("density", {"methods": ["plain", "cut"]}),
        ("sharing", {"methods": ["plain", "sparse"]}),
        ("average-ranks", {}),
        *((kind, {}) for kind in ("rates", "trials", "robustness", "decomposition")),
        ("differences", {"methods": ["plain"]}),
        ("stability", {"methods": ["plain"], "seeds": [0]}),
        ("ranks", {"methods": ["plain"], "failed": [("plain", 0), ("plain", 1)]}),
    ],
)
def test_a_kind_that_does_not_apply_says_why(kind: str, asked: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"kind: '{kind}' has nothing to show"):
        draw(Frames(store(tmp_path, **asked)), kind)


def test_the_parts_of_each_gain_are_drawn_with_their_intervals(tmp_path: Path) -> None:
    study = store(tmp_path / "study", methods=["plain", "cut", "transplant", "shuffled"], tasks=["rte", "mrpc"])
    for key, arm in study.arms():
        if key["method"] in ("transplant", "shuffled"):
            write_json(arm.path / "config.json", arm.config() | {"depends_on": {"label": "cut"}})
    figure = study.plot("decomposition", tmp_path / "parts.png")
    parts = study.decompose("cut")
    for ax, task in zip(figure.axes, ("rte", "mrpc"), strict=True):
        names = [" ".join(label.get_text().split()) for label in ax.get_yticklabels()]
        assert names == ["cut: ranks", "cut: place", "cut: start and training"]
        rows = parts[(parts["task"] == task) & (parts["metric"] == "accuracy")]
        drawn = [list(line.get_xdata()) for line in ax.lines if list(line.get_ydata()) in ([0, 0], [1, 1], [2, 2])]
        assert drawn == rows[["low", "high"]].to_numpy().tolist()


@pytest.mark.parametrize("kind", ["ranks", "lines"])
def test_methods_without_a_panel_are_named(kind: str, tmp_path: Path) -> None:
    failed = [("sparse", 0), ("sparse", 1), ("cut", 1), *(("shared-" + "x" * 40, seed) for seed in (0, 1))]
    study = store(
        tmp_path, methods=["plain", "cut", "sparse", "shared-" + "x" * 40], tasks=["rte", "mrpc"], failed=failed
    )
    figure = draw(Frames(study), kind)
    (note,) = [t for t in figure.findobj(Text) if "not shown" in t.get_text()]
    shown = "".join(note.get_text().split())
    assert shown.startswith("failed,thereforenotshown:sparse,rte;shared-x"), (
        "one seed of cut has finished, so it is shown"
    )
    assert shown.endswith("sparse,mrpc;shared-" + "x" * 40 + ",mrpc")
    box, width = note.get_window_extent(), figure.get_figwidth() * figure.dpi
    assert box.x0 >= 0
    assert box.x1 <= width
    assert box.y0 >= -1
    assert not any(box.overlaps(ax.get_tightbbox()) for ax in figure.axes)
    whole = draw(Frames(study.only(method="cut")), kind)
    assert not [t for t in whole.findobj(Text) if "not shown" in t.get_text()]


def test_arms_that_have_not_run_are_told_from_those_that_failed(tmp_path: Path) -> None:
    study = store(tmp_path, methods=["plain", "cut", "sparse"], seeds=[0], failed=[("cut", 0)])
    for file in study.arm("sparse", 0).path.iterdir():
        file.unlink()
    (note,) = [t.get_text() for t in draw(Frames(study), "lines").findobj(Text) if "not shown" in t.get_text()]
    assert " ".join(note.split()) == "failed, therefore not shown: cut; not finished, therefore not shown: sparse"


def test_unknown_kinds_and_files_are_refused(tmp_path: Path) -> None:
    study = store(tmp_path / "study", methods=["plain"], layers=2)
    with pytest.raises(UsageError, match="Did you mean 'ranks'"):
        study.plot("rank")
    with pytest.raises(UsageError, match="does not end in a known format"):
        study.plot("ranks", tmp_path / "ranks.gif2")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        study.plot("ranks", tmp_path / "file" / "ranks.png")
    study.plot("ranks", tmp_path / "new" / "ranks.pdf")
    assert (tmp_path / "new" / "ranks.pdf").read_bytes().startswith(b"%PDF")


def test_what_is_drawn_is_what_is_stored(tmp_path: Path) -> None:
    study = store(tmp_path, methods=["plain", "cut"], seeds=[0])
    figure = draw(Frames(study), "lines")
    cut = study.only(method="cut").allocation()
    (ax,) = (ax for ax in figure.axes if ax.get_title() == "cut")
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    for kind, rows in cut.groupby("kind", sort=False):
        assert rows.sort_values("layer")["rank"].tolist() in list(drawn.values()), kind
    figure = draw(Frames(study), "quality")
    frontier = study.frontier()
    heights = {round(float(y), 9) for line in figure.axes[0].lines for y in line.get_ydata()}
    assert {round(m, 9) for m in frontier["mean"]} <= heights
