"""Figures of a stored study, drawn by `peftprune.plots`, one panel per part of the study."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftprune import plots
from peftprune.analysis.frames import Frames
from peftprune.analysis.learned import NOTHING, by_method
from peftprune.analysis.predictions import measure
from peftprune.analysis.runs import KEY, in_cell
from peftprune.analysis.tuning import expected_best, half_decades, trial_means
from peftprune.errors import UsageError, did_you_mean
from peftprune.report.findings import in_words
from peftprune.study.stored_study import StoredStudy

KINDS: Mapping[str, str] = {
    "ranks": "Final ranks, mean of the seeds",
    "lines": "Final rank by layer, mean of the seeds",
    "training": "Ranks over training, mean of the seeds",
    "stability": "Agreement of allocations: between seeds on the diagonal, between methods off it",
    "density": "Share of entries that are not zero, mean of the seeds",
    "sharing": "Adapters that sites share, and sites without one",
    "quality": "Quality against parameters, with 95 % intervals over seeds",
    "curves": "Training loss, mean and range of the seeds",
    "differences": "Difference to the baseline, with 95 % intervals over examples and seeds, corrected by Holm",
    "decomposition": "Parts of each method's gain: its ranks, their place, and its start and training, each with the "
    "95 % interval of it alone",
    "cost": "Seconds by phase, relative to the first method",
    "average-ranks": "Average rank over tasks, with the critical difference",
    "rates": "Validation score over learning rates, mean and range of the tuning seeds",
    "trials": "Expected best validation score of some of the trials, drawn without replacement",
    "robustness": "Learning rates within one standard error of the best validation score",
}
"""Maps each kind to its title."""

FORMATS = (".png", ".pdf", ".svg")
_GROUP = ["task", "budget", "method"]
_FULL = 0.995
"""A site is sparse below this density: a few entries are zero by chance."""
_NARROW = 2.45
"""Width in inches of a panel when four share a row."""


def draw(frames: Frames, kind: str) -> Figure:
    """Draws one of `KINDS`. Raises UsageError for another kind, or where the study has nothing to show for it."""
    if kind not in KINDS:
        cure = f"{did_you_mean(kind, KINDS)}Kinds: {', '.join(KINDS)}"
        raise UsageError.of("kind", kind, "is unknown", cure)
    function, requirement = _DRAWN[kind]
    figure = function(frames)
    if figure is None:
        raise UsageError.of("kind", kind, "has nothing to show", requirement)
    # Without a layout engine, saving does not repeat the arrangement.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure; the suffix of the path selects the format.

    Raises UsageError for an unknown suffix, or a file that cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise UsageError.of("path", str(path), "does not end in a known format", f"Endings: {', '.join(FORMATS)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=200)
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise UsageError.of("path", str(path), problem, "Name a file in a folder you may write to") from None
    return target


def _panels(
    found: Mapping[str, Any], draw: Callable[[Axes, Any], object], width: float, height: float, note: str = ""
) -> Figure | None:
    """Draws what each title stands for on axes of its own, `width` × `height` inches; None where nothing is found."""
    if not found:
        return None
    figure, axes = plots.facets(list(found), width=width, height=height)
    for ax, panel in zip(axes, found.values(), strict=True):
        draw(ax, panel)
    plots.common_legend(figure, axes, note=note)
    return figure


def _ranks(frames: Frames) -> Figure | None:
    allocation = frames.allocation
    if allocation.empty:
        return None
    named = [_panel(frames.study, *key) for key in allocation[_GROUP].itertuples(index=False)]
    return plots.plot_rank_panels(allocation.assign(method=named), note=_unfinished(frames))


def _lines(frames: Frames) -> Figure | None:
    def draw(ax: Axes, grid: pd.DataFrame) -> None:
        plots.rank_lines(ax, grid, list(grid.index), list(grid.columns), legend=False)

    figure = _panels(_grids(frames, "rank"), draw, _NARROW, 2.0, note=_unfinished(frames))
    axes = figure.axes if figure else []
    top = max((ax.get_ylim()[1] for ax in axes), default=0.0)
    for ax in axes:
        ax.set_ylim(top=top)
    return figure


def _training(frames: Frames) -> Figure | None:
    """Draws the methods whose ranks change after the start."""
    panels: dict[str, tuple[pd.DataFrame, int]] = {}
    last_steps = frames.costs.groupby(_GROUP)["stop"].max().to_dict()
    for key, rows in frames.trace.groupby(_GROUP, sort=False):
        if rows.groupby(["seed", "site"])["rank"].nunique().max() < 2:
            continue
        seeds = [_totals(arm) for _, arm in rows.groupby("seed")]
        steps = sorted({step for arm in seeds for step in arm.index})
        mean = pd.concat([arm.reindex(steps).ffill() for arm in seeds]).groupby(level=0).mean()
        panels[_panel(frames.study, *key)] = (mean, int(last_steps[key]))

    def draw(ax: Axes, panel: tuple[pd.DataFrame, int]) -> None:
        values, end = panel
        steps = list(values.index)
        plots.rank_over_training(ax, steps, values.to_numpy(), list(values.columns), total_steps=end, legend=False)

    return _panels(panels, draw, _NARROW, 2.0)


def _totals(arm: pd.DataFrame) -> pd.DataFrame:
    """Returns steps × kinds: the total rank of all sites of a kind in one arm."""
    by_site = arm.pivot_table(index="step", columns=["kind", "site"], values="rank", sort=False).ffill()
    return by_site.T.groupby(level="kind", sort=False).sum().T


def _stability(frames: Frames) -> Figure | None:
    study, panels = frames.study, dict[str, pd.DataFrame]()
    for (task, budget), rows in frames.stability.groupby(["task", "budget"], sort=False):
        names = [m for m in study.methods if m in {*rows["method"], *rows["other_method"]}]
        for quantity in ("ranks", "sites", "components"):
            means = rows.groupby(["method", "other_method"])[quantity].mean().unstack()
            half = means.reindex(index=names, columns=names)
            grid = half.fillna(half.T)
            known = grid.notna().any()
            if known.any():
                panels[", ".join([quantity, *_cell(study, task, budget)])] = grid.loc[known, known]

    def draw(ax: Axes, grid: pd.DataFrame) -> None:
        plots.overlap_matrix(ax, grid.to_numpy(), list(grid.columns))

    size = max(2.6, 0.42 * max(map(len, panels.values()), default=0) + 1.4)
    figure = _panels(panels, draw, min(size + 0.6, 9.5), size)
    if figure:
        # A square matrix leaves its labels less room than the layout assumes.
        figure.set_layout_engine("constrained", w_pad=0.12)
    return figure


def _density(frames: Frames) -> Figure | None:
    def draw(ax: Axes, grid: pd.DataFrame) -> None:
        plots.density_heatmap(ax, grid.to_numpy(), list(grid.index), list(grid.columns))

    grids = _grids(frames, "density")
    sparse = {title: g for title, g in grids.items() if float(np.nanmin(g.to_numpy(float), initial=1.0)) < _FULL}
    return _panels(sparse, draw, *_map_size(sparse.values()))


def _sharing(frames: Frames) -> Figure | None:
    """Draws one panel per arm, since sharing differs between seeds."""
    panels: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    cells = [in_cell(frames.allocation, cell) for cell in frames.study.cells()]
    for (*key, seed), rows in pd.concat(cells).groupby(KEY, sort=False):
        if not ((rows["shared_with"] != "").any() or (rows["rank"] == 0).any()):
            continue
        ids: dict[frozenset[str], int] = {}
        groups = []
        for row in rows.to_dict("records"):
            if row["rank"] == 0:
                groups.append(-1)
            elif not row["shared_with"]:
                groups.append(0)
            else:
                members = frozenset([row["site"], *row["shared_with"].split(",")])
                groups.append(ids.setdefault(members, len(ids) + 1))
        title = f"{_panel(frames.study, *key)}, seed {seed}"
        marked = rows.assign(group=groups)
        panels[title] = (_grid(marked, "group"), _grid(marked, "rank"))

    def draw(ax: Axes, panel: tuple[pd.DataFrame, pd.DataFrame]) -> None:
        grid, ranks = panel
        labels = list(grid.index), list(grid.columns)
        plots.sharing_map(ax, grid.to_numpy(), *labels, ranks=ranks.to_numpy(), legend=False)

    return _panels(panels, draw, *_map_size([grid for grid, _ in panels.values()], cell=0.34))


def _quality(frames: Frames) -> Figure | None:
    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        task, metric = rows[["task", "metric"]].iloc[0]
        what = measure(frames.study, task, metric)
        scale: dict[str, Any] = {"metric": metric, "higher_is_better": what.higher_is_better, "limits": what.limits}
        sizes, means, lows, highs = (rows[name].to_numpy() for name in ("params", "mean", "low", "high"))
        methods, best = rows["method"].tolist(), rows["pareto"].to_numpy()
        plots.quality_against_parameters(ax, sizes, means, lows, highs, methods, pareto=best, legend=False, **scale)

    frame = frames.frontier[frames.frontier["params"] > 0]
    found = {str(task): rows for task, rows in frame.groupby("task", sort=False)}
    return _panels(found, draw, 4.5, 3.0, note=_idle(frames))


def _curves(frames: Frames) -> Figure | None:
    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        series = {}
        for method, logged in rows.groupby("method", sort=False):
            losses = logged.pivot(index="seed", columns="step", values="loss")
            series[str(method)] = (losses.columns.to_numpy(), losses.to_numpy())
        plots.learning_curves(ax, series, legend=False)

    return _panels(_by_cell(frames, frames.history), draw, 4.5, 3.0, note=_idle(frames))


def _differences(frames: Frames) -> Figure | None:
    if frames.against.empty:
        return None
    others = [m for m in frames.study.methods if m != frames.baseline]

    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        metric, placed = str(rows["metric"].iloc[0]), rows.set_index("method").reindex(others)
        placed = placed.sort_values("difference", ascending=False, kind="stable")
        about: dict[str, Any] = {"metric": metric, "baseline": frames.baseline, "margin": frames.margins.get(metric)}
        ends = (placed[name].to_numpy() for name in ("difference", "low_holm", "high_holm"))
        limits, verdicts = placed["detectable"].to_numpy(), placed["verdict"].fillna("").tolist()
        plots.forest(ax, placed.index.tolist(), *ends, detectable=limits, verdicts=verdicts, **about)

    # The tables hold these notes; a figure has no room for them.
    worded = in_words(frames.against.drop(columns=["effect", "learned"], errors="ignore"))
    groups = worded.groupby(["metric", "task", "budget"], sort=False)
    found = {", ".join([str(metric), *_cell(frames.study, *cell)]): rows for (metric, *cell), rows in groups}
    return _panels(found, draw, 9.0, 0.36 * len(others) + 0.9)


def _decomposition(frames: Frames) -> Figure | None:
    parts = {"ranks": "ranks", "place": "place", "dynamics": "start and training"}

    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        names = [f"{method}: {parts[part]}" for method, part in zip(rows["method"], rows["part"], strict=True)]
        ends = (rows[name].to_numpy() for name in ("difference", "low", "high"))
        plots.forest(ax, names, *ends, metric=str(rows["metric"].iloc[0]))

    frame = frames.decomposition
    found = _by_cell(frames, frame[frame["metric"] == frame["task"].map(frames.study.primary)])
    return _panels(found, draw, 9.0, 0.36 * max(map(len, found.values()), default=0) + 0.9)


def _cost(frames: Frames) -> Figure | None:
    methods = frames.study.methods

    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        seeds = rows.groupby("method")["seed"].nunique()
        spent = rows.pivot_table(index="method", columns="phase", values="seconds", aggfunc="sum", sort=False)
        spent = spent.div(seeds, axis=0)
        first = next(m for m in methods if m in spent.index)
        relative = (spent / spent.loc[first].sum()).reindex(methods)
        phases = [p for p in relative.columns if p != "evaluation"] + ["evaluation"]
        values = {str(phase): relative[phase].to_numpy() for phase in phases}
        plots.cost_by_phase(ax, methods, values, unit=f"seconds, {first} = 1", legend=False)

    return _panels(_by_cell(frames, frames.costs), draw, 9.0, 0.3 * len(methods) + 0.9)


def _average_ranks(frames: Frames) -> Figure | None:
    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        difference = float(rows["critical_difference"].iloc[0])
        plots.average_rank_diagram(ax, rows["method"].tolist(), rows["average_rank"].to_numpy(), difference)

    if frames.average_ranks.empty:
        return None
    groups = frames.average_ranks.groupby("budget", sort=False)
    found = {f"{rows['tasks'].iloc[0]} tasks, {_spaced(budget)}": rows for budget, rows in groups}
    return _panels(found, draw, 6.5, 0.14 * max(map(len, found.values())) + 1.2)


def _rates(frames: Frames) -> Figure | None:
    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        series = {}
        for method, mine in rows.groupby("method", sort=False):
            # A method's own option has its best value at each rate.
            scores = mine.groupby(["seed", "learning_rate"])["score"].max().unstack("learning_rate")
            series[str(method)] = ([float(rate) for rate in scores.columns], scores.to_numpy().tolist())
        task, budget = rows[["task", "budget"]].iloc[0]
        chosen = frames.choices[(frames.choices["task"] == task) & (frames.choices["budget"] == budget)]
        rates = dict(zip(chosen["method"], chosen["learning_rate"], strict=True))
        metric, xlabel = frames.study.primary[task], "learning rate (ring: chosen)"
        plots.learning_curves(ax, series, chosen=rates, log=True, xlabel=xlabel, ylabel=metric, legend=False)

    return _panels(_by_cell(frames, frames.whole_trials), draw, 4.5, 3.0)


def _trials(frames: Frames) -> Figure | None:
    def draw(ax: Axes, rows: pd.DataFrame) -> None:
        groups = trial_means(rows).groupby("method", sort=False)["score"]
        series = {str(method): (range(1, len(s) + 1), expected_best(s.tolist())) for method, s in groups}
        metric = frames.study.primary[rows["task"].iloc[0]]
        plots.learning_curves(ax, series, xlabel="trials", ylabel=f"expected best {metric}", legend=False)

    return _panels(_by_cell(frames, frames.whole_trials), draw, 4.5, 3.0)


def _robustness(frames: Frames) -> Figure | None:
    def draw(ax: Axes, width: pd.Series) -> None:
        # Without a name, so without a legend.
        values = {"": width.to_numpy()}
        plots.cost_by_phase(ax, width.index.tolist(), values, unit="half-decades of learning rate", legend=False)

    widths = {title: half_decades(rows) for title, rows in _by_cell(frames, frames.whole_trials).items()}
    found = {title: width for title, width in widths.items() if not width.empty}
    return _panels(found, draw, 9.0, 0.3 * max(map(len, found.values()), default=0) + 0.9)


_DRAWN: Mapping[str, tuple[Callable[[Frames], Figure | None], str]] = {
    "ranks": (_ranks, "No finished arm has adapters"),
    "lines": (_lines, "No finished arm has adapters"),
    "training": (_training, "No method of the study changes its ranks in training"),
    "stability": (_stability, "It requires two finished arms that share a method or a seed"),
    "density": (_density, "No method of the study zeroes entries"),
    "sharing": (_sharing, "No method of the study shares or removes adapters"),
    "quality": (_quality, "No arm has finished"),
    "curves": (_curves, "No arm has finished"),
    "differences": (_differences, "It requires two methods that finished the same seed"),
    "decomposition": (_decomposition, "It requires transplant(of=...) of a method, and shuffled(of=...) for its place"),
    "cost": (_cost, "No arm has finished"),
    "average-ranks": (_average_ranks, "It requires two methods that finished two tasks"),
    "rates": (_rates, "No learning rate was tuned"),
    "trials": (_trials, "No learning rate was tuned"),
    "robustness": (_robustness, "It requires learning rates that were tuned over two seeds"),
}
"""Maps each kind to what draws it, and to what it requires, for studies in which that finds nothing to show."""


def _cell(study: StoredStudy, task: object, budget: object) -> list[str]:
    """Returns task and budget, each only where the study has several."""
    return [str(task)] * (len(study.tasks) > 1) + [_spaced(budget)] * (len(study.budgets) > 1)


def _spaced(budget: object) -> str:
    """Returns a budget's label that can be wrapped."""
    return str(budget).replace(",", ", ")


def _by_cell(frames: Frames, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Maps the titles of tasks and budgets to their rows of a frame."""
    if frame.empty:
        return {}
    groups = frame.groupby(["task", "budget"], sort=False)
    return {", ".join(_cell(frames.study, *key)) or str(key[0]): rows for key, rows in groups}


def _panel(study: StoredStudy, task: object, budget: object, method: object) -> str:
    return ", ".join([str(method), *_cell(study, task, budget)])


def _grids(frames: Frames, column: str) -> dict[str, pd.DataFrame]:
    """Maps panel titles to layers × kinds, averaged over seeds."""
    groups = frames.allocation.groupby(_GROUP, sort=False)
    return {_panel(frames.study, *key): _grid(rows, column) for key, rows in groups}


def _grid(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Returns layers × kinds, averaged over seeds; NaN where there is no site."""
    layers = range(int(rows["layer"].max()) + 1)
    means = rows.assign(value=rows[column].astype(float)).groupby(["layer", "kind"], sort=False)["value"].mean()
    return means.unstack("kind").reindex(index=layers, columns=list(rows["kind"].unique()))


def _map_size(grids: Collection[pd.DataFrame], cell: float = 0.3) -> tuple[float, float]:
    """Returns (width, height) of a panel with a heat map, as large as the largest grid needs."""
    columns = max((grid.shape[1] for grid in grids), default=0)
    layers = max((grid.shape[0] for grid in grids), default=0)
    return min(max(cell * columns + 0.8, 2.2), 6.0), min(max(0.16 * layers, 1.3), 6.0) + 0.9


def _unfinished(frames: Frames) -> str:
    """Returns a note on the methods that have no panel because none of their arms has finished."""
    names: dict[str, list[str]] = {"failed": [], "not finished": []}
    for key, arms in frames.runs.groupby(_GROUP, sort=False):
        states = {str(status).partition(":")[0] for status in arms["status"]}
        if "done" not in states:
            names["failed" if "failed" in states else "not finished"].append(_panel(frames.study, *key))
    return "; ".join(f"{state}, therefore not shown: {'; '.join(found)}" for state, found in names.items() if found)


def _idle(frames: Frames) -> str:
    """Returns a note on the methods that learned nothing."""
    rows = [row for row in by_method(frames.learned).to_dict("records") if row["state"] == NOTHING]
    named = [f"{_panel(frames.study, *(row[n] for n in _GROUP))} ({row['learned']})" for row in rows]
    return f"learned nothing: {'; '.join(named)}" if named else ""
