"""Every drawing in its hard cases: no text touches another or leaves the figure, and nothing outside changes."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from peftprune import plots
from peftprune.stats import pareto_set

BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
ENCODER_DECODER = [
    f"{stack}.layers.{part}"
    for stack, parts in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"]))
    for part in [f"{a}.{p}" for a in parts for p in ("q_proj", "k_proj", "v_proj", "out_proj")] + ["fc1", "fc2"]
]
LONG = [f"method-{i}:with_options(initial_rank=64,final_rank={i},seed=1)_" for i in range(20)]
PHASES = [("warm-up", 0, 20), ("probe", 20, 40), ("search for ranks", 40, 600), ("final fine-tuning", 600, 1000)]


def grid(rows, columns, top=12.0):
    """Values between 0 and `top`, with one missing."""
    values = np.random.default_rng(0).integers(0, 13, (rows, columns)) / 12 * top
    if rows * columns > 1:
        values[0, -1] = np.nan
    return values


def groups(layers, kinds):
    values = np.tile(np.arange(layers)[:, None] // 2, (1, kinds)).astype(float)
    values[-1, 0] = -1
    return values


def quality(ax, names, budgets):
    labels = [name for name in names for _ in budgets]
    params = np.array(list(budgets) * len(names), float)
    mean = 0.6 + 0.02 * np.log2(params) + 0.01 * np.arange(len(labels)) % 7
    if len(labels) > 1:
        mean[0] = np.nan
    best = pareto_set(params, mean)
    ends = mean - 0.01, mean + 0.02
    return plots.quality_against_parameters(ax, params, mean, *ends, labels, pareto=best, metric="accuracy")


def curves(ax, names):
    steps = np.arange(1, 50)
    series = {name: (steps, np.exp(-steps / (i + 9)) + np.array([[0], [0.1]])) for i, name in enumerate(names)}
    if len(names) > 1:
        series[names[1]] = (steps, [[np.nan] * 49])
    return plots.learning_curves(ax, series, phases={names[0]: [("a", 0, 10), ("b", 10, 49)]}, title=names[0])


def differences(ax, names):
    n = len(names)
    d = np.linspace(-0.02, 0.03, n)
    if n > 1:
        d[1] = np.nan
    words = ["better", "cannot reach significance with 3 seeds", "not distinguishable at this size", "worse"]
    verdicts = (words * n)[:n]
    return plots.forest(
        ax, names, d, d - 0.01, d + 0.01, detectable=[0.02] * n, verdicts=verdicts, metric="f1", baseline=names[-1]
    )


def cost(ax, names):
    values = np.linspace(1, 20000, len(names))
    if len(names) > 1:
        values[0] = np.nan
    return plots.cost_by_phase(ax, names, {"search": values, "scoring, which": values / 3}, unit="seconds")


def ranked(ax, names, spread=1.0):
    n = len(names)
    ranks = 1 + spread * np.arange(n)
    if n > 4:
        ranks[3] = np.nan
    return plots.average_rank_diagram(ax, names, ranks, 0.2 * n, title=names[0])


def training(ax, kinds, phases=PHASES, events=6):
    values = 100 - 10 * np.outer(np.arange(events), 1 + np.arange(len(kinds)) // 2)
    steps = np.arange(events) * 100
    return plots.rank_over_training(ax, steps, values, kinds, total_steps=1000, phases=phases, title="A run")


CASES = {
    f"{function.__name__}-{layers}-{len(kinds)}": (
        lambda ax, f=function, layers=layers, kinds=kinds, top=top, make=make: f(
            ax, make(layers, len(kinds)) if make else grid(layers, len(kinds), top), range(layers), kinds, title=LONG[0]
        )
    )
    for function, top, make in (
        (plots.rank_heatmap, 64, None),
        (plots.density_heatmap, 1, None),
        (plots.rank_lines, 12, None),
        (plots.sharing_map, 0, groups),
    )
    for layers in (1, 6, 48)
    for kinds in (["q"], BERT, ENCODER_DECODER)
}
CASES |= {
    "lines-named": lambda ax: plots.rank_lines(ax, grid(12, 2), [f"decoder.layer.{i}" for i in range(12)], ["q", "v"]),
    "training-1": lambda ax: training(ax, ["query"], (), 1),
    "training-6": lambda ax: training(ax, BERT, [("warm-up", 0, 100), ("search", 100, 500), ("rest", 500, 1000)]),
    "training-14": lambda ax: training(ax, ENCODER_DECODER),
    "overlap-1": lambda ax: plots.overlap_matrix(ax, [[1]], ["lora"]),
    "overlap-5": lambda ax: plots.overlap_matrix(ax, grid(5, 5, 1), range(5), title="overlap of five seeds"),
    "overlap-10": lambda ax: plots.overlap_matrix(ax, grid(10, 10, 1), LONG[:10]),
    "sharing-ranks": lambda ax: plots.sharing_map(ax, groups(6, 6), range(6), BERT, ranks=np.full((6, 6), 128)),
    "quality-1": lambda ax: quality(ax, ["lora"], [294912]),
    "quality-10": lambda ax: quality(ax, LONG[:10], [147456, 294912, 589824, 1179648]),
    "quality-10-linear": lambda ax: quality(ax, LONG[:10], [294912, 300000, 442368]),
    "quality-wide": lambda ax: quality(ax, ["lora", "vera"], [2000 * 2**i for i in range(12)]),
    "curves-1": lambda ax: curves(ax, ["lora"]),
    "curves-10": lambda ax: curves(ax, LONG[:10]),
    "forest-1": lambda ax: differences(ax, ["lora"]),
    "forest-10": lambda ax: differences(ax, LONG[:10]),
    "cost-1": lambda ax: cost(ax, ["lora"]),
    "cost-10": lambda ax: cost(ax, LONG[:10]),
    "average-1": lambda ax: ranked(ax, ["lora"]),
    "average-2": lambda ax: ranked(ax, ["lora", "vera"]),
    "average-10": lambda ax: ranked(ax, LONG[:10]),
    "average-20": lambda ax: ranked(ax, LONG),
    "average-20-close": lambda ax: ranked(ax, LONG, 0.1),
}


def texts_of(ax):
    """The texts that are drawn of an axes and what it holds."""
    found = [ax.title, *ax.texts]
    if ax.axison:
        for axis in (ax.xaxis, ax.yaxis):
            found += [axis.label, axis.get_offset_text()]
            found += [label for tick in axis._update_ticks() for label in (tick.label1, tick.label2)]
    if ax.get_legend() is not None:
        found += [*ax.get_legend().get_texts(), ax.get_legend().get_title()]
    for child in ax.child_axes:
        found += texts_of(child)
    return found


def corners(text: Text):
    """The four corners of a text in pixels; of one that is slanted about its anchor, slanted too."""
    angle = text.get_rotation()
    if text.get_rotation_mode() != "anchor" or angle % 90 == 0:
        return text.get_window_extent().corners()[[0, 1, 3, 2]]
    text.set_rotation(0)
    level = text.get_window_extent().corners()[[0, 1, 3, 2]]
    text.set_rotation(angle)
    anchor = text.get_transform().transform(text.get_position())
    turn = np.deg2rad(angle)
    return (level - anchor) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + anchor


def touch(a, b, tolerance=1.0):
    """Whether two convex shapes overlap by more than `tolerance` pixels in all directions."""
    for shape in (a, b):
        edges = np.roll(shape, -1, axis=0) - shape
        for normal in np.column_stack([-edges[:, 1], edges[:, 0]]):
            unit = normal / max(np.linalg.norm(normal), 1e-9)
            p, q = a @ unit, b @ unit
            if p.max() < q.min() + tolerance or q.max() < p.min() + tolerance:
                return False
    return True


def check_texts(figure):
    figure.draw_without_rendering()
    texts = [text for ax in figure.axes for text in texts_of(ax)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    texts = [text for text in texts if text.get_visible() and text.get_text().strip()]
    shapes = [corners(text) for text in texts]
    low = np.array([shape.min(axis=0) for shape in shapes])
    high = np.array([shape.max(axis=0) for shape in shapes])
    for text, a, b in zip(texts, low, high, strict=True):
        assert (a >= -1).all(), f"{text.get_text()!r} leaves the figure"
        assert (b <= np.array([figure.bbox.x1, figure.bbox.y1]) + 1).all(), f"{text.get_text()!r} leaves the figure"
    # Boxes that lie apart need no closer look.
    near = ((low[:, None] < high[None]) & (high[:, None] > low[None])).all(axis=2)
    for i, j in zip(*np.triu(near, 1).nonzero(), strict=True):
        assert not touch(shapes[i], shapes[j]), f"{texts[i].get_text()!r} touches {texts[j].get_text()!r}"
    return texts


@pytest.mark.parametrize("case", CASES)
def test_texts_neither_touch_nor_leave_the_figure(case):
    ax = CASES[case](None)
    figure = ax.get_figure()
    assert figure.get_figwidth() <= 10
    texts = check_texts(figure)
    assert all(text.get_fontsize() >= 5 for text in texts)


@pytest.mark.parametrize("case", ["quality-10", "forest-10", "rank_heatmap-6-6", "cost-10", "training-6", "curves-10"])
def test_given_axes_are_drawn_on_and_returned(case):
    figure, axes = plots.facets(["A task", "Another task", LONG[0]], width=4.5, height=3.2)
    assert [CASES[case](ax) is ax for ax in axes] == [True] * 3
    check_texts(figure)


@pytest.mark.parametrize("case", CASES)
def test_nothing_outside_the_axes_changes(case):
    from matplotlib import pyplot as plt

    before = dict(mpl.rcParams)
    ax = Figure(figsize=(6, 4), layout="constrained").add_subplot()
    assert CASES[case](ax) is ax
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("case", ["quality-10", "sharing_map-6-6", "average-10", "overlap-5"])
def test_drawings_can_be_saved_as_vectors(case):
    file = io.StringIO()
    CASES[case](None).get_figure().savefig(file, format="svg")
    assert 5_000 < len(file.getvalue()) < 2_000_000


@pytest.mark.parametrize("name", ["rank_heatmap-6-6", "density_heatmap-6-6", "sharing_map-6-6", "overlap-5"])
def test_ink_on_cells_does_not_follow_the_page(name):
    ax = CASES[name](None)
    assert {text.get_color() for text in ax.texts} <= {"#010101", "#fefefe", "#808080"}
    assert ax.patch.get_facecolor()[3] == 0


def test_dollars_and_underscores_are_no_markup():
    ax = quality(None, ["_private", "$x$ and $"], [1000, 2000])
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["_private", "$x$ and $"]
    check_texts(ax.get_figure())
