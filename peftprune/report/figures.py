"""Figures of a stored study: each kind lays out what `peftprune.plots` draws, one panel a part of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from peftprune import plots
from peftprune.analysis.differences import against
from peftprune.analysis.frontier import frontier
from peftprune.analysis.history import costs, history, trace
from peftprune.analysis.pooled import average_ranks
from peftprune.analysis.predictions import measure
from peftprune.analysis.runs import arm_rows, site_rows
from peftprune.analysis.stability import stability
from peftprune.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    "differences": "Difference to the baseline, with 95 % intervals over examples and seeds",
    "cost": "Seconds by phase, relative to the first method",
    "average-ranks": "Average rank over tasks, with the critical difference",
}
"""Kind to what it shows."""

FORMATS = (".png", ".pdf", ".svg")

_FULL = 0.995
"""A site counts as sparse below this density: a few entries are zero by chance."""

_NARROW = 2.45
"""Inches of a panel of which four stand side by side."""


def draw(comparison: StoredStudy, kind: str, *, baseline: str | None = None) -> Figure:
    """Draw one of `KINDS`.

    Args:
        comparison: a study or a part of one (`Comparison.only`).
        kind: what to draw.
        baseline: for "differences"; by default the first method.

    Raises:
        UsageError: an unknown kind, or one that the study has nothing to show for.
    """
    if kind not in KINDS:
        close = get_close_matches(kind, KINDS, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise UsageError.of("kind", kind, "is unknown", f"{hint}Kinds: {', '.join(KINDS)}")
    figure = _differences(comparison, baseline) if kind == "differences" else _DRAWN[kind](comparison)
    # Once arranged it stays so: every saving would arrange all of it anew.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the ending names the format.

    Raises:
        UsageError: an unknown ending, or a file that cannot be written.
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


def _ranks(comparison: StoredStudy) -> Figure:
    allocation = site_rows(comparison)
    if allocation.empty:
        raise _nothing("ranks", "no finished arm has adapters")
    named = [_panel(comparison, row) for row in allocation[["task", "budget", "method"]].to_dict("records")]
    return plots.plot_rank_panels(allocation.assign(method=named), note=_unfinished(comparison))


def _lines(comparison: StoredStudy) -> Figure:
    found = _grids(comparison, site_rows(comparison), "rank")
    if not found:
        raise _nothing("lines", "no finished arm has adapters")
    figure, axes = plots.facets(list(found), width=_NARROW, height=2.0)
    for ax, grid in zip(axes, found.values(), strict=True):
        plots.rank_lines(ax, grid, list(grid.index), list(grid.columns), legend=False)
    _share_scale(axes)
    plots.common_legend(figure, axes, note=_unfinished(comparison))
    return figure


def _training(comparison: StoredStudy) -> Figure:
    """Only for methods whose ranks change after the start."""
    events = trace(comparison)
    panels: dict[str, tuple[pd.DataFrame, int]] = {}
    for (task, budget, method), rows in events.groupby(["task", "budget", "method"], sort=False):
        if rows.groupby(["seed", "site"])["rank"].nunique().max() < 2:
            continue
        totals = pd.concat([_totals(arm) for _, arm in rows.groupby("seed")])
        steps = sorted(set(totals.index))
        seeds = [arm.reindex(steps).ffill() for _, arm in totals.groupby("seed")]
        mean = pd.concat([arm.drop(columns="seed") for arm in seeds]).groupby(level=0).mean()
        key = {"task": task, "budget": budget, "method": method}
        panels[_panel(comparison, key)] = (mean, _total_steps(comparison, key))
    if not panels:
        raise _nothing("training", "no method of the study changes its ranks in training")
    figure, axes = plots.facets(list(panels), width=_NARROW, height=2.0)
    for ax, (values, end) in zip(axes, panels.values(), strict=True):
        plots.rank_over_training(
            ax, list(values.index), values.to_numpy(), list(values.columns), total_steps=end, legend=False
        )
    plots.common_legend(figure, axes)
    return figure


def _totals(arm: pd.DataFrame) -> pd.DataFrame:
    """Steps × kinds: the ranks of all sites of a kind together, of one arm; and its seed."""
    by_site = arm.pivot_table(index="step", columns=["kind", "site"], values="rank", sort=False).ffill()
    return by_site.T.groupby(level="kind", sort=False).sum().T.assign(seed=arm["seed"].iloc[0])


def _total_steps(comparison: StoredStudy, key: Mapping[str, Any]) -> int:
    part = comparison.only(**{name: key[name] for name in ("task", "budget", "method")})
    return int(costs(part)["stop"].max())


def _stability(comparison: StoredStudy) -> Figure:
    frame = stability(comparison)
    panels: dict[str, pd.DataFrame] = {}
    for (task, budget), rows in frame.groupby(["task", "budget"], sort=False):
        names = [m for m in comparison.methods if m in {*rows["method"], *rows["other_method"]}]
        for quantity in ("ranks", "sites", "components"):
            means = rows.groupby(["method", "other_method"])[quantity].mean()
            grid = pd.DataFrame(np.nan, index=names, columns=names)
            for row in means.reset_index().to_dict("records"):
                a, b = row["method"], row["other_method"]
                grid.loc[a, b] = grid.loc[b, a] = row[quantity]
            known = grid.notna().any()
            if known.any():
                panels[", ".join([quantity, *_cell(comparison, task, budget)])] = grid.loc[known, known]
    if not panels:
        raise _nothing("stability", "it takes two finished arms that share a method or a seed")
    size = max(2.6, 0.42 * max(len(grid) for grid in panels.values()) + 1.4)
    figure, axes = plots.facets(list(panels), width=min(size + 0.6, 9.5), height=size)
    # A square matrix leaves its labels less room than the layout reckons with.
    figure.set_layout_engine("constrained", w_pad=0.12)
    for ax, grid in zip(axes, panels.values(), strict=True):
        plots.overlap_matrix(ax, grid.to_numpy(), list(grid.columns))
    return figure


def _density(comparison: StoredStudy) -> Figure:
    found = {
        title: grid
        for title, grid in _grids(comparison, site_rows(comparison), "density").items()
        if float(np.nanmin(grid.to_numpy(float), initial=1.0)) < _FULL
    }
    if not found:
        raise _nothing("density", "no method of the study zeroes entries")
    figure, axes = _maps(found)
    for ax, grid in zip(axes, found.values(), strict=True):
        plots.density_heatmap(ax, grid.to_numpy(), list(grid.index), list(grid.columns))
    return figure


def _sharing(comparison: StoredStudy) -> Figure:
    """One panel an arm, since who shares differs from seed to seed."""
    panels: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    allocation = pd.concat([site_rows(cell) for cell in comparison.cells()])
    for (task, budget, method, seed), rows in allocation.groupby(["task", "budget", "method", "seed"], sort=False):
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
        key = {"task": task, "budget": budget, "method": method}
        title = f"{_panel(comparison, key)}, seed {seed}"
        marked = rows.assign(group=groups)
        panels[title] = (_grid(marked, "group"), _grid(marked, "rank"))
    if not panels:
        raise _nothing("sharing", "no method of the study shares or removes adapters")
    figure, axes = _maps({title: grid for title, (grid, _) in panels.items()}, cell=0.34)
    for ax, (grid, ranks) in zip(axes, panels.values(), strict=True):
        plots.sharing_map(
            ax, grid.to_numpy(), list(grid.index), list(grid.columns), ranks=ranks.to_numpy(), legend=False
        )
    plots.common_legend(figure, axes)
    return figure


def _quality(comparison: StoredStudy) -> Figure:
    frame = frontier(comparison)
    frame = frame[frame["params"] > 0]
    if frame.empty:
        raise _nothing("quality", "no arm has finished")
    found = dict(iter(frame.groupby("task", sort=False)))
    figure, axes = plots.facets([str(task) for task in found], width=4.5, height=3.0)
    for ax, (task, rows) in zip(axes, found.items(), strict=True):
        metric = rows["metric"].iloc[0]
        what = measure(comparison.only(task=str(task)), metric)
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
    plots.common_legend(figure, axes)
    return figure


def _curves(comparison: StoredStudy) -> Figure:
    losses = history(comparison)
    if losses.empty:
        raise _nothing("curves", "no arm has finished")
    found = dict(iter(losses.groupby(["task", "budget"], sort=False)))
    figure, axes = plots.facets([_cell_title(comparison, *key) for key in found], width=4.5, height=3.0)
    for ax, rows in zip(axes, found.values(), strict=True):
        series = {}
        for method, logged in rows.groupby("method", sort=False):
            losses = logged.pivot(index="seed", columns="step", values="loss")
            series[str(method)] = (losses.columns.to_numpy(), losses.to_numpy())
        plots.learning_curves(ax, series, legend=False)
    plots.common_legend(figure, axes)
    return figure


def _differences(comparison: StoredStudy, baseline: str | None) -> Figure:
    frame = against(comparison, baseline)
    if frame.empty:
        raise _nothing("differences", "it takes two methods that finished the same seed")
    baseline = str(frame["baseline"].iloc[0])
    others = [m for m in comparison.methods if m != baseline]
    found = dict(iter(frame.groupby(["task", "budget", "metric"], sort=False)))
    titles = [", ".join([str(metric), *_cell(comparison, task, budget)]) for task, budget, metric in found]
    figure, axes = plots.facets(titles, width=9.0, height=0.36 * len(others) + 0.9)
    for ax, ((_, _, metric), rows) in zip(axes, found.items(), strict=True):
        placed = rows.set_index("method").reindex(others)
        plots.forest(
            ax,
            others,
            placed["difference"].to_numpy(),
            placed["low"].to_numpy(),
            placed["high"].to_numpy(),
            detectable=placed["detectable"].to_numpy(),
            verdicts=placed["verdict"].fillna("").tolist(),
            metric=str(metric),
            baseline=baseline,
        )
    return figure


def _cost(comparison: StoredStudy) -> Figure:
    spent = costs(comparison)
    if spent.empty:
        raise _nothing("cost", "no arm has finished")
    found = dict(iter(spent.groupby(["task", "budget"], sort=False)))
    titles = [_cell_title(comparison, *key) for key in found]
    figure, axes = plots.facets(titles, width=9.0, height=0.3 * len(comparison.methods) + 0.9)
    for ax, rows in zip(axes, found.values(), strict=True):
        seeds = rows.groupby("method")["seed"].nunique()
        spent = rows.pivot_table(index="method", columns="phase", values="seconds", aggfunc="sum", sort=False)
        spent = spent.div(seeds, axis=0)
        first = next(m for m in comparison.methods if m in spent.index)
        relative = (spent / spent.loc[first].sum()).reindex(comparison.methods)
        phases = [p for p in relative.columns if p != "evaluation"] + ["evaluation"]
        values = {str(phase): relative[phase].to_numpy() for phase in phases}
        plots.cost_by_phase(ax, comparison.methods, values, unit=f"seconds, {first} = 1", legend=False)
    plots.common_legend(figure, axes)
    return figure


def _average_ranks(comparison: StoredStudy) -> Figure:
    frame = average_ranks(comparison)
    if frame.empty:
        raise _nothing("average-ranks", "it takes two methods that finished two tasks")
    found = dict(iter(frame.groupby("budget", sort=False)))
    height = 0.14 * max(len(rows) for rows in found.values()) + 1.2
    titles = [f"{rows['tasks'].iloc[0]} tasks, {_spaced(budget)}" for budget, rows in found.items()]
    figure, axes = plots.facets(titles, width=6.5, height=height)
    for ax, rows in zip(axes, found.values(), strict=True):
        difference = float(rows["critical_difference"].iloc[0])
        plots.average_rank_diagram(ax, rows["method"].tolist(), rows["average_rank"].to_numpy(), difference)
    return figure


_DRAWN: Mapping[str, Callable[[StoredStudy], Figure]] = {
    "ranks": _ranks,
    "lines": _lines,
    "training": _training,
    "stability": _stability,
    "density": _density,
    "sharing": _sharing,
    "quality": _quality,
    "curves": _curves,
    "cost": _cost,
    "average-ranks": _average_ranks,
}


def _cell(comparison: StoredStudy, task: object, budget: object) -> list[str]:
    """Task and budget, each only where the study has several."""
    return [str(task)] * (len(comparison.tasks) > 1) + [_spaced(budget)] * (len(comparison.budgets) > 1)


def _spaced(budget: object) -> str:
    """A budget's label that can be broken into lines."""
    return str(budget).replace(",", ", ")


def _cell_title(comparison: StoredStudy, task: object, budget: object) -> str:
    return ", ".join(_cell(comparison, task, budget)) or str(task)


def _panel(comparison: StoredStudy, key: Mapping[Any, Any]) -> str:
    return ", ".join([str(key["method"]), *_cell(comparison, key["task"], key["budget"])])


def _grids(comparison: StoredStudy, allocation: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Panel title to layers × kinds, averaged over seeds."""
    return {
        _panel(comparison, {"task": task, "budget": budget, "method": method}): _grid(rows, column)
        for (task, budget, method), rows in allocation.groupby(["task", "budget", "method"], sort=False)
    }


def _grid(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Layers × kinds, averaged over seeds; NaN where there is no site."""
    layers = range(int(rows["layer"].max()) + 1)
    means = rows.assign(value=rows[column].astype(float)).groupby(["layer", "kind"], sort=False)["value"].mean()
    return means.unstack("kind").reindex(index=layers, columns=list(rows["kind"].unique()))


def _maps(grids: Mapping[str, pd.DataFrame], cell: float = 0.3) -> tuple[Figure, list[Axes]]:
    """Panels for heat maps, as large as the largest of them needs."""
    columns = max(grid.shape[1] for grid in grids.values())
    layers = max(grid.shape[0] for grid in grids.values())
    width = min(max(cell * columns + 0.8, 2.2), 6.0)
    return plots.facets(list(grids), width=width, height=min(max(0.16 * layers, 1.3), 6.0) + 0.9)


def _share_scale(axes: Sequence[Axes]) -> None:
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(top=top)


def _unfinished(comparison: StoredStudy) -> str:
    """Which methods have no panel because none of their arms has finished; empty where there is none."""
    runs = arm_rows(comparison)
    names: dict[str, list[str]] = {"failed": [], "pending": []}
    for (task, budget, method), arms in runs.groupby(["task", "budget", "method"], sort=False):
        states = [str(status).partition(":")[0] for status in arms["status"]]
        if "done" not in states:
            key = {"task": task, "budget": budget, "method": method}
            names["failed" if "failed" in states else "pending"].append(_panel(comparison, key))
    said = {"failed": "failed, hence not shown: ", "pending": "not finished, hence not shown: "}
    return "; ".join(said[state] + "; ".join(found) for state, found in names.items() if found)


def _nothing(kind: str, why: str) -> UsageError:
    return UsageError.of("kind", kind, "has nothing to show", why[0].upper() + why[1:])
