"""Figures of a stored study, drawn by `peftprune.plots`, one panel per part of the study."""

from collections.abc import Callable, Mapping
from pathlib import Path

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
    figure = _DRAWN[kind](frames)
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


def _ranks(frames: Frames) -> Figure:
    allocation = frames.allocation
    if allocation.empty:
        raise _nothing("ranks", "no finished arm has adapters")
    named = [_panel(frames.study, *key) for key in allocation[_GROUP].itertuples(index=False)]
    return plots.plot_rank_panels(allocation.assign(method=named), note=_unfinished(frames))


def _lines(frames: Frames) -> Figure:
    found = _grids(frames, "rank")
    if not found:
        raise _nothing("lines", "no finished arm has adapters")
    figure, axes = plots.facets(list(found), width=_NARROW, height=2.0)
    for ax, grid in zip(axes, found.values(), strict=True):
        plots.rank_lines(ax, grid, list(grid.index), list(grid.columns), legend=False)
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(top=top)
    plots.common_legend(figure, axes, note=_unfinished(frames))
    return figure


def _training(frames: Frames) -> Figure:
    """Draws the methods whose ranks change after the start."""
    panels: dict[str, tuple[pd.DataFrame, int]] = {}
    last_steps = frames.costs.groupby(_GROUP)["stop"].max().to_dict()
    for key, rows in frames.trace.groupby(_GROUP, sort=False):
        if rows.groupby(["seed", "site"])["rank"].nunique().max() < 2:
            continue
        totals = pd.concat([_totals(arm) for _, arm in rows.groupby("seed")])
        steps = sorted(set(totals.index))
        seeds = [arm.reindex(steps).ffill() for _, arm in totals.groupby("seed")]
        mean = pd.concat([arm.drop(columns="seed") for arm in seeds]).groupby(level=0).mean()
        panels[_panel(frames.study, *key)] = (mean, int(last_steps[key]))
    if not panels:
        raise _nothing("training", "no method of the study changes its ranks in training")
    figure, axes = plots.facets(list(panels), width=_NARROW, height=2.0)
    for ax, (values, end) in zip(axes, panels.values(), strict=True):
        at = list(values.index)
        plots.rank_over_training(ax, at, values.to_numpy(), list(values.columns), total_steps=end, legend=False)
    plots.common_legend(figure, axes)
    return figure


def _totals(arm: pd.DataFrame) -> pd.DataFrame:
    """Returns steps × kinds: the total rank of all sites of a kind in one arm; and the arm's seed."""
    by_site = arm.pivot_table(index="step", columns=["kind", "site"], values="rank", sort=False).ffill()
    return by_site.T.groupby(level="kind", sort=False).sum().T.assign(seed=arm["seed"].iloc[0])


def _stability(frames: Frames) -> Figure:
    study, panels = frames.study, dict[str, pd.DataFrame]()
    for (task, budget), rows in frames.stability.groupby(["task", "budget"], sort=False):
        names = [m for m in study.methods if m in {*rows["method"], *rows["other_method"]}]
        for quantity in ("ranks", "sites", "components"):
            means = rows.groupby(["method", "other_method"])[quantity].mean()
            grid = pd.DataFrame(np.nan, index=names, columns=names)
            for row in means.reset_index().to_dict("records"):
                a, b = row["method"], row["other_method"]
                grid.loc[a, b] = grid.loc[b, a] = row[quantity]
            known = grid.notna().any()
            if known.any():
                panels[", ".join([quantity, *_cell(study, task, budget)])] = grid.loc[known, known]
    if not panels:
        raise _nothing("stability", "it requires two finished arms that share a method or a seed")
    size = max(2.6, 0.42 * max(len(grid) for grid in panels.values()) + 1.4)
    figure, axes = plots.facets(list(panels), width=min(size + 0.6, 9.5), height=size)
    # A square matrix leaves its labels less room than the layout assumes.
    figure.set_layout_engine("constrained", w_pad=0.12)
    for ax, grid in zip(axes, panels.values(), strict=True):
        plots.overlap_matrix(ax, grid.to_numpy(), list(grid.columns))
    return figure


def _density(frames: Frames) -> Figure:
    found = {
        title: grid
        for title, grid in _grids(frames, "density").items()
        if float(np.nanmin(grid.to_numpy(float), initial=1.0)) < _FULL
    }
    if not found:
        raise _nothing("density", "no method of the study zeroes entries")
    figure, axes = _maps(found)
    for ax, grid in zip(axes, found.values(), strict=True):
        plots.density_heatmap(ax, grid.to_numpy(), list(grid.index), list(grid.columns))
    return figure


def _sharing(frames: Frames) -> Figure:
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
    if not panels:
        raise _nothing("sharing", "no method of the study shares or removes adapters")
    figure, axes = _maps({title: grid for title, (grid, _) in panels.items()}, cell=0.34)
    for ax, (grid, ranks) in zip(axes, panels.values(), strict=True):
        labels = list(grid.index), list(grid.columns)
        plots.sharing_map(ax, grid.to_numpy(), *labels, ranks=ranks.to_numpy(), legend=False)
    plots.common_legend(figure, axes)
    return figure


def _quality(frames: Frames) -> Figure:
    frame = frames.frontier[frames.frontier["params"] > 0]
    if frame.empty:
        raise _nothing("quality", "no arm has finished")
    found = dict(iter(frame.groupby("task", sort=False)))
    figure, axes = plots.facets([str(task) for task in found], width=4.5, height=3.0)
    for ax, (task, rows) in zip(axes, found.items(), strict=True):
        metric = rows["metric"].iloc[0]
        what = measure(frames.study, str(task), metric)
        plots.quality_against_parameters(
            ax,
            rows["params"].to_numpy(),
            rows["mean"].to_numpy(),
            rows["low"].to_numpy(),
            rows["high"].to_numpy(),
            rows["method"].tolist(),
            pareto=rows["pareto"].to_numpy(),
            metric=metric,
            higher_is_better=what.higher_is_better,
            limits=what.limits,
            legend=False,
        )
    plots.common_legend(figure, axes, note=_idle(frames))
    return figure


def _curves(frames: Frames) -> Figure:
    if frames.history.empty:
        raise _nothing("curves", "no arm has finished")
    found = _by_cell(frames, frames.history)
    figure, axes = plots.facets(list(found), width=4.5, height=3.0)
    for ax, rows in zip(axes, found.values(), strict=True):
        series = {}
        for method, logged in rows.groupby("method", sort=False):
            losses = logged.pivot(index="seed", columns="step", values="loss")
            series[str(method)] = (losses.columns.to_numpy(), losses.to_numpy())
        plots.learning_curves(ax, series, legend=False)
    plots.common_legend(figure, axes, note=_idle(frames))
    return figure


def _differences(frames: Frames) -> Figure:
    if frames.against.empty:
        raise _nothing("differences", "it requires two methods that finished the same seed")
    others = [m for m in frames.study.methods if m != frames.baseline]
    # The tables hold these notes; a figure has no room for them.
    worded = in_words(frames.against.drop(columns=["effect", "learned"], errors="ignore"))
    found = dict(iter(worded.groupby(["task", "budget", "metric"], sort=False)))
    titles = [", ".join([str(metric), *_cell(frames.study, task, budget)]) for task, budget, metric in found]
    figure, axes = plots.facets(titles, width=9.0, height=0.36 * len(others) + 0.9)
    for ax, ((_, _, metric), rows) in zip(axes, found.items(), strict=True):
        placed = rows.set_index("method").reindex(others)
        plots.forest(
            ax,
            others,
            *(placed[name].to_numpy() for name in ("difference", "low_holm", "high_holm")),
            detectable=placed["detectable"].to_numpy(),
            verdicts=placed["verdict"].fillna("").tolist(),
            margin=frames.margins.get(str(metric)),
            metric=str(metric),
            baseline=frames.baseline,
        )
    return figure


def _cost(frames: Frames) -> Figure:
    if frames.costs.empty:
        raise _nothing("cost", "no arm has finished")
    methods = frames.study.methods
    found = _by_cell(frames, frames.costs)
    figure, axes = plots.facets(list(found), width=9.0, height=0.3 * len(methods) + 0.9)
    for ax, rows in zip(axes, found.values(), strict=True):
        seeds = rows.groupby("method")["seed"].nunique()
        spent = rows.pivot_table(index="method", columns="phase", values="seconds", aggfunc="sum", sort=False)
        spent = spent.div(seeds, axis=0)
        first = next(m for m in methods if m in spent.index)
        relative = (spent / spent.loc[first].sum()).reindex(methods)
        phases = [p for p in relative.columns if p != "evaluation"] + ["evaluation"]
        values = {str(phase): relative[phase].to_numpy() for phase in phases}
        plots.cost_by_phase(ax, methods, values, unit=f"seconds, {first} = 1", legend=False)
    plots.common_legend(figure, axes)
    return figure


def _average_ranks(frames: Frames) -> Figure:
    if frames.average_ranks.empty:
        raise _nothing("average-ranks", "it requires two methods that finished two tasks")
    found = dict(iter(frames.average_ranks.groupby("budget", sort=False)))
    height = 0.14 * max(len(rows) for rows in found.values()) + 1.2
    titles = [f"{rows['tasks'].iloc[0]} tasks, {_spaced(budget)}" for budget, rows in found.items()]
    figure, axes = plots.facets(titles, width=6.5, height=height)
    for ax, rows in zip(axes, found.values(), strict=True):
        difference = float(rows["critical_difference"].iloc[0])
        plots.average_rank_diagram(ax, rows["method"].tolist(), rows["average_rank"].to_numpy(), difference)
    return figure


def _rates(frames: Frames) -> Figure:
    if frames.trials.empty:
        raise _nothing("rates", "no learning rate was tuned")
    found, best = _by_cell(frames, frames.trials), _by_cell(frames, frames.choices)
    figure, axes = plots.facets(list(found), width=4.5, height=3.0)
    for ax, (title, rows) in zip(axes, found.items(), strict=True):
        series = {}
        for method, mine in rows.groupby("method", sort=False):
            # A method's own option has its best value at each rate.
            scores = mine.groupby(["seed", "learning_rate"])["score"].max().unstack("learning_rate")
            series[str(method)] = ([float(rate) for rate in scores.columns], scores.to_numpy().tolist())
        metric = frames.study.primary[str(rows["task"].iloc[0])]
        chosen = dict(zip(best[title]["method"], best[title]["learning_rate"], strict=True))
        xlabel = "learning rate (ring: chosen)"
        plots.learning_curves(ax, series, chosen=chosen, log=True, xlabel=xlabel, ylabel=metric, legend=False)
    plots.common_legend(figure, axes)
    return figure


def _trials(frames: Frames) -> Figure:
    if frames.trials.empty:
        raise _nothing("trials", "no learning rate was tuned")
    found = _by_cell(frames, frames.trials)
    figure, axes = plots.facets(list(found), width=4.5, height=3.0)
    for ax, rows in zip(axes, found.values(), strict=True):
        groups = trial_means(rows).groupby("method", sort=False)["score"]
        series = {str(method): (range(1, len(s) + 1), expected_best(s.tolist())) for method, s in groups}
        metric = frames.study.primary[str(rows["task"].iloc[0])]
        plots.learning_curves(ax, series, xlabel="trials", ylabel=f"expected best {metric}", legend=False)
    plots.common_legend(figure, axes)
    return figure


def _robustness(frames: Frames) -> Figure:
    widths = {title: half_decades(rows) for title, rows in _by_cell(frames, frames.trials).items()}
    found = {title: width for title, width in widths.items() if not width.empty}
    if not found:
        raise _nothing("robustness", "it requires learning rates that were tuned over two seeds")
    figure, axes = plots.facets(list(found), width=9.0, height=0.3 * max(map(len, found.values())) + 0.9)
    for ax, width in zip(axes, found.values(), strict=True):
        plots.cost_by_phase(
            ax, width.index.tolist(), {"width": width.to_numpy()}, unit="half-decades of learning rate", legend=False
        )
    return figure


_DRAWN: Mapping[str, Callable[[Frames], Figure]] = {
    "ranks": _ranks,
    "lines": _lines,
    "training": _training,
    "stability": _stability,
    "density": _density,
    "sharing": _sharing,
    "quality": _quality,
    "curves": _curves,
    "differences": _differences,
    "cost": _cost,
    "average-ranks": _average_ranks,
    "rates": _rates,
    "trials": _trials,
    "robustness": _robustness,
}


def _cell(study: StoredStudy, task: object, budget: object) -> list[str]:
    """Returns task and budget, each only where the study has several."""
    return [str(task)] * (len(study.tasks) > 1) + [_spaced(budget)] * (len(study.budgets) > 1)


def _spaced(budget: object) -> str:
    """Returns a budget's label that can be wrapped."""
    return str(budget).replace(",", ", ")


def _by_cell(frames: Frames, frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Maps the titles of tasks and budgets to their rows of a frame."""
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


def _maps(grids: Mapping[str, pd.DataFrame], cell: float = 0.3) -> tuple[Figure, list[Axes]]:
    """Returns panels for heat maps, each as large as the largest grid needs."""
    columns = max(grid.shape[1] for grid in grids.values())
    layers = max(grid.shape[0] for grid in grids.values())
    width = min(max(cell * columns + 0.8, 2.2), 6.0)
    return plots.facets(list(grids), width=width, height=min(max(0.16 * layers, 1.3), 6.0) + 0.9)


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


def _nothing(kind: str, why: str) -> UsageError:
    return UsageError.of("kind", kind, "has nothing to show", why[0].upper() + why[1:])
