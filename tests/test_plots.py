"""Rank heat maps: what is drawn where, and that nothing outside the figure changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from peftprune.errors import UsageError
from peftprune.plots import plot_rank_panels, rank_heatmap, short_kinds

BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def allocation(methods, layers=6, kinds=BERT, seeds=2, rank=8):
    """Rank `rank` for seed 0, one more for each further seed."""
    return pd.DataFrame(
        {"method": m, "seed": s, "site": f"{i}.{k}", "layer": i, "kind": k, "rank": rank + s, "shared_with": None}
        for m in methods
        for s in range(seeds)
        for i in range(layers)
        for k in kinds
    )


def numbers(ax):
    return {(text.get_position()): text.get_text() for text in ax.texts}


def test_heatmap_labels_layers_upwards_and_leaves_absent_sites_empty():
    ax = rank_heatmap(None, [[1, np.nan], [3, 12]], [0, 1], ["query", "output.dense"], title="a $ name")
    # Keyed by the middle of the cell: x counts kinds, y counts layers.
    assert numbers(ax) == {(0.5, 0.5): "1", (0.5, 1.5): "3", (1.5, 1.5): "12"}
    assert not ax.yaxis_inverted()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["query", "out"]
    assert ax.collections[0].get_clim() == (0, 12)


def test_heatmap_draws_on_the_given_axes_and_hatches_shared_sites():
    from matplotlib.figure import Figure

    ax = Figure(figsize=(3, 3)).add_subplot()
    shared = [[True, False], [False, True]]
    # The fourth site is absent: there is nothing to hatch.
    returned = rank_heatmap(ax, [[1, 2], [3, np.nan]], ["a", "b"], ["q", "v"], shared=shared)
    assert returned is ax
    assert [(hatched.get_hatch(), len(hatched.get_paths())) for hatched in ax.collections[1:]] == [("////", 1)]
    assert ax.collections[1].get_paths()[0].vertices[:4].tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]


def test_numbers_contrast_with_their_cells():
    ax = rank_heatmap(None, [[0, 100]], [0], ["q", "v"])
    assert [text.get_color() for text in ax.texts] == ["#fefefe", "#010101"]


def test_small_cells_stay_without_numbers():
    assert not rank_heatmap(None, np.full((100, 4), 7.0), range(100), list("abcd")).texts
    assert not rank_heatmap(None, np.full((2, 2), 7.0), range(2), list("ab"), annotate=False).texts


def test_equal_and_absent_ranks_can_be_drawn():
    rank_heatmap(None, np.zeros((2, 2)), [0, 1], ["q", "v"])
    rank_heatmap(None, np.full((2, 2), np.nan), [0, 1], ["q", "v"])


def test_shapes_are_checked():
    with pytest.raises(UsageError, match="layers × kinds"):
        rank_heatmap(None, [[1, 2]], [0, 1], ["q", "v"])
    with pytest.raises(UsageError, match="shared"):
        rank_heatmap(None, [[1, 2]], [0], ["q", "v"], shared=[[True]])


@pytest.mark.parametrize(("methods", "layers"), [(1, 6), (4, 12), (7, 6), (12, 48)])
def test_one_panel_per_method_and_one_colour_bar(methods, layers):
    names = [f"method-{i}:with_options(initial_rank=64,seed={i})" for i in range(methods)]
    figure = plot_rank_panels(allocation(names, layers))
    assert len(figure.axes) == methods + 1
    titles = [ax.get_title().replace("\n", "") for ax in figure.axes[:-1]]
    assert titles == names
    assert figure.get_figwidth() <= 10
    # Titles neither overlap each other nor leave the figure.
    boxes = [ax.title.get_window_extent() for ax in figure.axes[:-1]]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box.y1 <= figure.bbox.y1 and box.x0 >= 0 for box in boxes)


def test_ranks_are_averaged_over_seeds():
    figure = plot_rank_panels(allocation(["lora"], layers=1, seeds=3))
    panel, bar = figure.axes
    assert set(numbers(panel).values()) == {"9"}
    assert bar.get_ylabel() == "rank (mean of 3 seeds)"


def test_shared_sites_are_hatched_and_explained():
    frame = allocation(["lora", "tied"], layers=2, seeds=1)
    frame.loc[(frame["method"] == "tied") & (frame["layer"] == 1), "shared_with"] = "0.query"
    figure = plot_rank_panels(frame)
    assert [sum(len(hatched.get_paths()) for hatched in ax.collections[1:]) for ax in figure.axes[:2]] == [0, len(BERT)]
    assert "hatched" in figure.get_supxlabel()


def test_a_method_with_fewer_sites_leaves_gaps():
    frame = pd.concat([allocation(["all"], 2, BERT), allocation(["few"], 2, ["query"])])
    figure = plot_rank_panels(frame)
    assert [len(ax.texts) for ax in figure.axes[:2]] == [2 * len(BERT), 2]


def test_figure_is_saved_and_global_state_stays(tmp_path):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = dict(mpl.rcParams)
    plot_rank_panels(allocation(["lora"]), tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 5_000
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


def test_bad_frames_are_explained():
    with pytest.raises(UsageError, match="lacks the columns rank"):
        plot_rank_panels(allocation(["lora"]).drop(columns="rank"))
    with pytest.raises(UsageError, match="has no rows"):
        plot_rank_panels(allocation(["lora"]).iloc[:0])


def test_short_kinds_stay_different():
    assert short_kinds(BERT) == ["query", "key", "value", "attn.out", "inter", "out"]
    assert short_kinds(["encoder.q_proj", "decoder.encoder_attn.v_proj"]) == ["enc.q", "dec.cross.v"]
    assert short_kinds(["q_proj", "q_lin", "v_proj"]) == ["q_proj", "q_lin", "v"]
