"""The calibration: simulated truth is true, rates are counted right, and the file and its table say what misses."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import rounds
from benchmarks.calibration.__main__ import main
from benchmarks.calibration.measure import COUNTS, Cell, count, grid, row
from benchmarks.calibration.simulate import METRICS
from benchmarks.calibration.table import rounds_section, section


@pytest.mark.parametrize("name", METRICS)
def test_simulated_methods_have_the_true_value_that_they_are_given(name: str) -> None:
    what, rng = METRICS[name], np.random.default_rng(0)
    scale = what.scale(0.03)
    quality = what.quality(what.base, scale) + scale * rng.standard_normal(60)
    features = what.sums.features(*what.draw(quality, 4000, rng))
    values = what.sums.evaluate(features.sum(axis=-1))
    assert values.mean() == pytest.approx(what.base, abs=4 * 0.03 / 60**0.5)
    assert values.std() == pytest.approx(0.03, rel=0.35)
    assert values[:20] == pytest.approx(what.value(quality[:20]), abs=0.04)


def test_rates_of_a_cell_are_plausible_and_repeatable() -> None:
    cell = Cell("accuracy", 277, 5, "small")
    found = count(cell, 60, resamples=199)
    assert found == count(cell, 60, resamples=199)
    assert found != count(cell, 60, start=60, resamples=199)
    assert min(found["covered_null"], found["covered_shifted"]) >= 50
    assert found["covered_null"] + found["false_different"] == 60
    assert max(found[name] for name in COUNTS if name.startswith("false")) <= 10
    assert 0 < found["found"] < 60


def test_a_miss_is_more_than_chance() -> None:
    cell = Cell("f1", 408, 5, "none")
    good = dict.fromkeys(COUNTS, 0) | {"covered_null": 190, "covered_shifted": 190, "false_different": 14}
    assert row(cell, good, 200)["misses"] == []
    assert row(cell, good, 200)["coverage"] == 0.95
    bad = good | {"covered_null": 150, "false_equivalent": 25}
    assert row(cell, bad, 200)["misses"] == ["coverage low", "false equivalent"]
    assert row(cell._replace(seeds=2), bad, 200)["misses"] == []
    assert row(cell, good | {"covered_null": 200, "covered_shifted": 200}, 200)["misses"] == ["coverage high"]


def test_a_reduced_grid_is_written_round_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.calibration.__main__._BLOCK", 3)
    cells = grid(["accuracy", "bleu"], [40, 408], [2])
    assert {c.metric for c in cells if c.examples == 40} == {"accuracy"}
    main(tmp_path / "out.json", 4, cells[:4], math.inf, partial(count, resamples=99), row, {"resamples": 99})
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["repetitions"], len(found["cells"])) == (4, 4)
    assert all(0 <= c["coverage"] <= 1 for c in found["cells"])
    found["cells"][0]["misses"] = ["false different"]
    text = section(found)
    assert "| 2 | none (0) |" in text
    assert "accuracy, 40 examples, 2 seeds, deviation none: false different." in text


def test_studies_in_rounds_are_counted_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_EARLY", 999)
    monkeypatch.setattr(rounds, "_LATE", 999)
    cell = rounds.Cell("accuracy", 400, "large", "mixed")
    found = rounds.count(cell, 5)
    assert found == rounds.count(cell, 5) != rounds.count(cell, 5, 5)
    assert 0 < found["decided"] <= 15
    assert 5 * 4 * 5 <= found["arms"] <= 5 * 4 * 12
    shares = rounds.row(cell, found, 5)
    assert shares["decided"] == found["decided"] / 15
    assert rounds.row(cell, found | {"false": 5}, 5)["misses"] == ["false"]
    main(tmp_path / "out.json", 2, [cell], math.inf, rounds.count, rounds.row, {"rounds": rounds.ROUNDS})
    text = rounds_section(json.loads((tmp_path / "out.json").read_text()))
    assert "| accuracy | 400 | large (0.04) | mixed |" in text
    assert {c.truth for c in rounds.grid()} == set(rounds.TRUTHS)
