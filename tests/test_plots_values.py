"""What is drawn equals what was given, and what cannot be drawn is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from peftprune import plots
from peftprune.errors import UsageError
from peftprune.stats import pareto_set

KINDS = ["query", "key", "value"]
RANKS = arrays(float, (5, 3), elements=st.integers(0, 4).map(float) | st.just(np.nan))


def points(ax):
    """The lines that hold marks only: of each series, all its points."""
    return [line for line in ax.lines if line.get_linestyle() == "None" and len(line.get_xdata())]


def drawn_pieces(ax):
    return [line for line in ax.lines if line.get_linestyle() != "None" and len(line.get_xdata())]


def test_densities_are_written_in_percent_on_a_full_scale():
    ax = plots.density_heatmap(None, [[0.25, 1.0], [np.nan, 0.0]], [0, 1], ["q", "v"])
    assert [text.get_text() for text in ax.texts] == ["25%", "100%", "0%"]
    assert ax.collections[0].get_clim() == (0, 1)
    mesh = ax.collections[0]
    assert mesh.cmap(mesh.norm(np.ma.masked_invalid([np.nan])))[0][3] == 0  # an empty cell shows the page


@settings(max_examples=15, deadline=None)
@given(RANKS)
def test_rank_lines_hold_all_values_and_break_where_there_is_no_site(ranks):
    ax = plots.rank_lines(None, ranks, range(5), KINDS, legend=False)
    for line, values in zip(points(ax), ranks.T, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), values)
    for piece in drawn_pieces(ax):
        assert not np.isnan(piece.get_ydata()).any()
        x = piece.get_xdata().astype(int)
        assert any(np.array_equal(ranks[x, kind], piece.get_ydata()) for kind in range(3))
    # Every step between two known values is drawn for every kind.
    steps = sum(len(piece.get_xdata()) - 1 for piece in drawn_pieces(ax))
    assert steps == (~np.isnan(ranks[1:]) & ~np.isnan(ranks[:-1])).sum()


def test_equal_lines_take_turns():
    ax = plots.rank_lines(None, [[2, 2, 5], [4, 4, 5]], [0, 1], KINDS)
    offsets, dashes = zip(*(piece._unscaled_dash_pattern for piece in drawn_pieces(ax)[:2]), strict=True)
    assert dashes[0] == dashes[1] == (3, 3)
    assert sorted(offsets) == [0, 3]
    # At the first layer, the first of the equal kinds bears the mark, at the second the other.
    assert [line.get_markevery() for line in points(ax)] == [[0], [1], [0, 1]]


def test_ranks_over_training_hold_until_the_next_event():
    ax = plots.rank_over_training(None, [0, 10, 30], [[9, 4], [6, 4], [3, 4]], ["q", "v"], total_steps=50)
    first = points(ax)[0]
    assert first.get_xdata().tolist() == [0, 10, 30, 50]
    assert first.get_ydata().tolist() == [9, 6, 3, 3]
    piece = drawn_pieces(ax)[0]
    assert piece.get_xdata().tolist() == [0, 10, 10, 30, 30, 50, 50]
    assert piece.get_ydata().tolist() == [9, 9, 6, 6, 3, 3, 3]


def test_phases_are_shaded_and_named():
    phases = [("warm-up", 0, 20), ("search", 20, 100)]
    ax = plots.rank_over_training(None, [0], [[8]], ["q"], total_steps=100, phases=phases)
    assert [(band.get_x(), band.get_width()) for band in ax.patches] == [(0, 20), (20, 80)]
    assert [label.get_text() for label in ax.child_axes[0].get_xticklabels()] == ["warm-up", "search"]


def test_overlaps_are_written_and_undefined_ones_hatched():
    ax = plots.overlap_matrix(None, [[1, np.nan], [0.5, 1]], ["a", "b"])
    assert {text.get_position(): text.get_text() for text in ax.texts} == {
        (0.5, 0.5): "1.00",
        (0.5, 1.5): "0.50",
        (1.5, 1.5): "1.00",
    }
    assert ax.yaxis_inverted()
    assert [len(hatched.get_paths()) for hatched in ax.collections[1:]] == [1]


def test_long_labels_of_a_matrix_are_numbered():
    ax = plots.overlap_matrix(None, np.eye(2), ["a long label", "another one"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1  a long label", "2  another one"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2"]


def test_sharing_is_lettered_or_hatched():
    groups = np.ma.masked_invalid([[5, 5, 0], [9, 9, np.nan], [-1, 0, 0]])
    ax = plots.sharing_map(None, groups, range(3), KINDS, ranks=np.full((3, 3), 4))
    assert [text.get_text() for text in ax.texts] == ["A 4", "A 4", "4", "B 4", "B 4", "4", "4"]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["factors of its own", "dropped (rank 0)", "A: shared by 2 sites", "B: shared by 2 sites"]
    tall = np.repeat(groups.filled(np.nan), 100, axis=0)
    ax = plots.sharing_map(None, tall, range(300), KINDS)
    assert not ax.texts
    assert [hatched.get_hatch() for hatched in ax.collections[1:]] == ["////", "----", "xxxx"]
    assert [patch.get_hatch() for patch in ax.get_legend().get_patches()] == [None, "xxxx", "////", "----"]


def test_quality_is_drawn_where_it_was_measured():
    params, mean = [200, 100, 100, 200], [0.8, 0.7, 0.6, 0.9]
    low = [0.75, np.nan, 0.5, 0.85]
    high = [0.85, np.nan, 0.7, 0.95]
    labels, best = ["a", "a", "b", "b"], pareto_set(params, mean)
    ax = plots.quality_against_parameters(None, params, mean, low, high, labels, pareto=best, metric="accuracy")
    named = {line.get_label(): line for line in ax.lines}
    assert named["a"].get_xdata().tolist() == [100, 200]
    assert named["a"].get_ydata().tolist() == [0.7, 0.8]
    bars = [line for line in ax.lines if line.get_marker() == "_"]
    np.testing.assert_array_equal(bars[0].get_ydata(), [0.75, 0.85, np.nan])  # the other has no interval
    rings = [line.get_ydata().tolist() for line in ax.lines if line.get_markersize() == 9.5 and len(line.get_xdata())]
    assert rings == [[0.7], [0.9]]
    assert "side by side" in ax.get_xlabel()
    assert ax.get_xscale() == "linear"
    assert ax.get_ylabel() == "accuracy (higher is better)"


def test_methods_of_equal_size_are_apart_and_at_their_height():
    ax = plots.quality_against_parameters(None, [100, 100], [0.7, 0.7], None, None, ["a", "b"])
    ax.get_figure().draw_without_rendering()
    a, b = (line.get_transform().transform([(100, 0.7)])[0] for line in ax.lines if line.get_label() in ("a", "b"))
    assert abs(a[0] - b[0]) > 5
    assert a[1] == pytest.approx(b[1])


def test_a_wide_range_of_sizes_is_logarithmic():
    ax = plots.quality_against_parameters(None, [100, 401], [0.7, 0.8], None, None, ["a", "a"])
    assert ax.get_xscale() == "log"
    assert "side by side" not in ax.get_xlabel()


def test_a_method_without_results_is_named():
    ax = plots.quality_against_parameters(None, [1, 1], [0.7, np.nan], None, None, ["a", "b"], pareto=[False, False])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b (no result)"]


def test_learning_curves_show_mean_and_extremes():
    losses = [[3, 2, 1], [5, np.inf]]
    ax = plots.learning_curves(None, {"a": ([1, 2, 3], losses), "b": ([1, 2], [4.0, 2.0])})
    assert ax.lines[0].get_ydata().tolist() == [4, 2, 1]
    assert ax.lines[1].get_ydata().tolist() == [4, 2]
    assert len(ax.collections) == 1  # one seed has no band
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1, 5)


def test_boundaries_of_phases_are_marked_for_each_series():
    series = {name: ([1, 2, 3], [3.0, 2.0, 1.0]) for name in "ab"}
    ax = plots.learning_curves(None, series, phases={"b": [("warm-up", 0, 2), ("rest", 2, 3)]})
    boundary = ax.lines[-1]
    assert boundary.get_xdata() == [2, 2]
    assert boundary.get_color() == ax.lines[1].get_color()


def test_forest_holds_differences_intervals_and_outcomes():
    ax = plots.forest(
        None,
        ["a", "b", "c"],
        [0.02, -0.03, np.nan],
        [0.01, np.nan, np.nan],
        [0.03, np.nan, np.nan],
        detectable=[0.015, np.nan, np.inf],
        verdicts=["better", "worse", ""],
        metric="f1",
        baseline="lora",
    )
    marks = {line.get_marker(): line.get_xdata()[0] for line in ax.lines if line.get_marker() in "^v"}
    assert marks == {"^": 0.02, "v": -0.03}
    assert [text.get_text() for text in ax.texts] == [
        "+0.0200 [+0.0100, +0.0300]\nbetter",
        "−0.0300\nworse",
        "not compared",
    ]
    bands = [(patch.get_x(), patch.get_width()) for patch in ax.patches]
    assert bands[0] == (-0.015, 0.03)
    assert bands[1] == (ax.get_xlim()[0], np.diff(ax.get_xlim())[0])
    assert ax.get_xlabel().startswith("difference in f1 to lora")


def test_forest_draws_the_margin_as_a_band():
    verdicts = ["equivalent within 0.05", "better, by less than 0.05"]
    ax = plots.forest(None, ["a", "b"], [0.0, 0.01], [-0.01, 0.005], [0.01, 0.015], verdicts=verdicts, margin=0.05)
    assert [(patch.get_x(), patch.get_width()) for patch in ax.patches] == [(-0.05, pytest.approx(0.1))]
    assert ax.get_xlim()[0] < -0.05
    assert {line.get_marker() for line in ax.lines} >= {"D", "^"}
    assert "margin ±0.05" in ax.get_xlabel()


def test_costs_are_stacked_and_summed():
    ax = plots.cost_by_phase(None, ["a", "b", "c"], {"x": [1, 2, np.nan], "y": [3, np.nan, np.nan]}, unit="s")
    assert [[bar.get_width() for bar in bars] for bars in ax.containers] == [[1, 2, 0], [3, 0, 0]]
    assert [bar.get_x() for bar in ax.containers[1]] == [1, 2, 0]
    assert [text.get_text() for text in ax.texts] == ["4", "2", "no result"]
    assert len({bars[0].get_hatch() for bars in ax.containers}) == 2


def test_intervals_are_as_wide_as_the_critical_difference_and_the_best_is_at_the_top():
    ax = plots.average_rank_diagram(None, list("abcd"), [2.5, 1.0, np.nan, 4.0], 1.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a", "d", "c"]
    assert [text.get_text() for text in ax.texts] == ["1.00", "2.50", "4.00", "not ranked"]
    ends = [path.vertices[:, 0].tolist() for path in ax.collections[0].get_paths() if len(path.vertices)]
    assert ends[:3] == [[0.25, 1.75], [1.75, 3.25], [3.25, 4.75]]
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((0.25, 1.75))
    assert "critical difference 1.50" in ax.get_xlabel()


def test_facets_are_spread_evenly_and_titled():
    figure, axes = plots.facets([f"task {i}" for i in range(4)])
    assert len(axes) == len(figure.axes) == 4
    figure.draw_without_rendering()
    assert len({round(ax.get_position().x0, 3) for ax in axes}) == 2
    assert [ax.get_title() for ax in axes] == [f"task {i}" for i in range(4)]
    assert figure.get_figwidth() <= 10


def test_one_legend_serves_all_axes():
    figure, axes = plots.facets(["x", "y"])
    plots.learning_curves(axes[0], {"a": ([1, 2], [2.0, 1.0])}, legend=False)
    plots.learning_curves(axes[1], {"a": ([1, 2], [2.0, 1.0]), "_b": ([1, 2], [3.0, 1.0])}, legend=False)
    legend = plots.common_legend(figure, axes)
    assert [text.get_text() for text in legend.get_texts()] == ["a", "_b"]
    empty, axes = plots.facets(["x"])
    assert plots.common_legend(empty, axes) is None


REFUSED = {
    "no layer": lambda: plots.rank_heatmap(None, np.zeros((0, 1)), [], ["q"]),
    "densities: 50.0": lambda: plots.density_heatmap(None, [[50]], [0], ["q"]),
    "ranks: .* is not layers × kinds": lambda: plots.rank_lines(None, [[1, 2]], [0], ["q"]),
    "kind_labels": lambda: plots.rank_lines(None, np.zeros((1, 0)), [0], []),
    "steps: .* does not increase": lambda: plots.rank_over_training(None, [1, 1], [[1], [2]], ["q"]),
    "total_steps: 5.0": lambda: plots.rank_over_training(None, [0, 9], [[1], [2]], ["q"], total_steps=5),
    "ends before it starts": lambda: plots.rank_over_training(None, [0], [[1]], ["q"], phases=[("a", 5, 2)]),
    "is not steps × labels": lambda: plots.rank_over_training(None, [0], [[1, 2]], ["q"]),
    "steps: .* is not a list": lambda: plots.rank_over_training(None, [], [], ["q"]),
    "values: .* is not labels × labels": lambda: plots.overlap_matrix(None, [[1, 1]], ["a"]),
    "labels: .* is empty": lambda: plots.overlap_matrix(None, [], []),
    "values: 1.5": lambda: plots.overlap_matrix(None, [[1.5]], ["a"]),
    "groups: -2.0": lambda: plots.sharing_map(None, [[-2]], [0], ["q"]),
    "params: 0.0": lambda: plots.quality_against_parameters(None, [0], [1], None, None, ["a"]),
    "mean: .* does not fit": lambda: plots.quality_against_parameters(None, [1], [1, 2], None, None, ["a"]),
    "quality: .* another shape": lambda: pareto_set([1], [1, 2]),
    "series: .* is empty": lambda: plots.learning_curves(None, {}),
    "more than its steps": lambda: plots.learning_curves(None, {"a": ([1], [[1, 2]])}),
    "not a label of the series": lambda: plots.learning_curves(None, {"a": ([1], [1])}, phases={"b": []}),
    "margin: -0.1": lambda: plots.forest(None, ["a"], [1], [0], [2], margin=-0.1),
    "verdicts: 2": lambda: plots.forest(None, ["a"], [1], [0], [2], verdicts=["better", "worse"]),
    "lows": lambda: plots.forest(None, ["a"], [1], [], [2]),
    "is negative": lambda: plots.cost_by_phase(None, ["a"], {"x": [-1]}, unit="s"),
    "phases: .* is empty": lambda: plots.cost_by_phase(None, ["a"], {}, unit="s"),
    "average_ranks: 3.0": lambda: plots.average_rank_diagram(None, ["a"], [3], 1),
    "critical_difference: -1": lambda: plots.average_rank_diagram(None, ["a"], [1], -1),
    "titles: .* is empty": lambda: plots.facets([]),
    "width: 0": lambda: plots.facets(["a"], width=0),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_drawn_is_refused(message):
    with pytest.raises(UsageError, match=message.replace("no layer", "layer_labels")):
        REFUSED[message]()
