"""The pure functions behind the drawings."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftprune.plots.axes import even_columns
from peftprune.plots.labels import fit, spread, within, wrap
from peftprune.plots.quality import in_units
from peftprune.plots.sharing import letters
from peftprune.plots.style import series_style
from peftprune.stats import pareto_set


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=12), st.booleans())
def test_the_pareto_set_is_what_no_point_beats(points, higher):
    params, quality = np.array(points).T
    gain = quality if higher else -quality

    def beaten(i):
        return any(
            params[j] <= params[i] and gain[j] >= gain[i] and (params[j] < params[i] or gain[j] > gain[i])
            for j in range(len(points))
        )

    found = pareto_set(params, quality, higher_is_better=higher)
    assert found.tolist() == [not beaten(i) for i in range(len(points))]


def test_failed_runs_are_not_in_the_pareto_set():
    assert pareto_set([1, 2, 3], [np.nan, 0.5, np.nan]).tolist() == [False, True, False]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.floats(0.1, 40))
def test_spread_things_do_not_overlap_and_stay_inside(middles, width):
    middles = sorted(middles)
    moved = spread(middles, [width] * len(middles), 0, 100)
    fitting = min(width, 100 / len(middles))
    assert all(b - a >= fitting - 1e-6 for a, b in pairwise(moved))
    assert moved[0] >= fitting / 2 - 1e-6
    assert moved[-1] <= 100 - fitting / 2 + 1e-6


def test_things_that_do_not_overlap_stay():
    assert spread([10, 50, 90], [20, 20, 20], 0, 100) == [10, 50, 90]


@given(st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=80), st.integers(1, 4))
def test_fitted_names_have_few_short_lines(name, lines):
    found = fit(name, 1.0, lines, 6.0).split("\n")
    assert len(found) <= lines
    assert all(len(line) <= 20 for line in found)
    if len(wrap(name, 1.0, 6.0).split("\n")) <= lines:
        assert "".join(found) == name


def test_fitted_names_keep_their_ends():
    assert fit("method:with_options(seed=1)", 0.6, 1, 6.0) == "method…ed=1)"
    assert fit("method:with_options(seed=1)", 0.6, 2, 6.0).endswith("eed=1)")
    assert within("short\na line that is far too long", 60, 6.0).startswith("short\n")


def test_numbers_of_parameters_have_three_digits():
    assert [in_units(n) for n in (7, 999, 1000, 884736, 999_600, 2359296, 7e9)] == [
        "7",
        "999",
        "1k",
        "885k",
        "1M",
        "2.36M",
        "7G",
    ]


def test_groups_are_lettered_like_columns_of_a_sheet():
    assert [letters(i) for i in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_series_differ_by_more_than_colour():
    styles = [series_style(i) for i in range(91)]
    assert len({(s["color"], s["marker"]) for s in styles}) == 91
    for period in range(7, 35, 7):  # the same colour
        assert styles[0]["marker"] != styles[period]["marker"]
        assert styles[0]["linestyle"] != styles[period]["linestyle"]


@pytest.mark.parametrize(("panels", "columns"), [(1, 1), (3, 3), (4, 2), (7, 3), (12, 3)])
def test_panels_are_spread_evenly(panels, columns):
    assert even_columns(panels, 3.2, margin=0.0) == columns
