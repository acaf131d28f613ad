"""The tables of a study: the columns, captions and notes of each frame of `Frames`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd

from peftprune.analysis.frames import Frames
from peftprune.analysis.learned import CEILING, NOTHING, by_method
from peftprune.analysis.runs import in_cell
from peftprune.report.findings import best_first, brief, budget_in_words, cell_title, in_words, selected_in_words
from peftprune.report.table import (
    Column,
    Table,
    column,
    count,
    difference,
    interval,
    needed,
    number,
    p_value,
    plain,
    score,
    table,
    with_reference,
)
from peftprune.study.store import STOPPED
from peftprune.study.stored_study import StoredStudy

_COST = (number("flops", 1, "TFLOP", factor=1e-12), number("seconds", 0))
_EFFECT = (
    number("effect_size", 2, "effect size", signed=True, detail=True),
    number("probability", 2, "chance to improve", detail=True),
)
_MARGIN = (
    column("margin", "margin", "{:g}".format),
    p_value("p_not_worse", "p (not worse)", detail=True),
    p_value("p_equivalent", "p (equivalent)", detail=True),
)
_MARGIN_NOTE = (
    " Equivalent: the interval lies between both margins (two one-sided tests). Not worse: it lies above the lower "
    "one. The correction covers all these tests; their p values are doubled, to be compared with 0.05."
)
_LONGEST_STATUS = 60
learning_rate = column("learning_rate", "rate", "{:g}".format)


class _Layout(NamedTuple):
    """How a frame is shown; fields of its first row may stand in the caption."""

    caption: str
    columns: tuple[Column, ...]
    note: str = ""
    detail: str = ""


_LAYOUTS = {
    "against": _Layout(
        "Differences to {baseline}",
        (
            *map(plain, ("method", "metric")),
            number("difference", 4, signed=True),
            interval("low_holm", "high_holm", "95 % interval (Holm)"),
            plain("verdict"),
            p_value("p_holm", "p (Holm)", runs="seeds"),
            needed("seeds_needed", "seeds needed", "more examples"),
            number("detectable", 4, "smallest detectable"),
            count("seeds", detail=True),
            interval(title="95 % interval, alone", detail=True),
            p_value("p", "p", detail=True, runs="seeds"),
            *_EFFECT,
        ),
        "Paired bootstrap over examples and seeds; p and interval corrected over methods by Holm, so that the interval "
        "excludes 0 where p is at most 0.05. Smallest detectable: the true difference that a study of this size "
        "detects with a power of 0.8. Seeds needed: for a difference of the observed size. A dash: one seed has no p "
        "and does not show how seeds vary, equal answers show no noise, no more seeds needed.",
        "Effect size: Hedges’ g of the scores paired by seed. Chance to improve: the probability that a run of the "
        "method scores above a run of the baseline.",
    ),
    "mcnemar": _Layout(
        "Models compared with those of {baseline}",
        (
            plain("method"),
            count("seed"),
            count("only_method", "correct: method only"),
            count("only_baseline", "correct: baseline only"),
            p_value("p", "p"),
            p_value("p_holm", "p (Holm)"),
        ),
        "McNemar’s exact test. Each row compares two trained models, not the methods; seeds are never pooled.",
    ),
    "pooled": _Layout(
        "Pairs pooled over tasks, compared with {baseline}",
        (
            plain("method"),
            count("tasks", detail=True),
            count("pairs"),
            number("gain", 4, signed=True),
            interval("low_holm", "high_holm", "95 % interval (Holm)"),
            interval(title="95 % interval, alone", detail=True),
            p_value("p", "p", detail=True, runs="pairs"),
            p_value("p_holm", "p (Holm)", runs="pairs"),
            *_EFFECT,
            needed("pairs_needed", "pairs needed", detail=True),
            plain("verdict"),
        ),
        "Gain: mean difference in the tasks’ primary metrics over pairs of runs that share task and seed. It describes "
        "these tasks, not new ones. Interval and p come from sign flips, corrected over methods by Holm. Pairs needed: "
        "for a gain of the observed size. A dash: too few pairs for a bounded interval, no more pairs needed.",
    ),
    "average_ranks": _Layout(
        "Average ranks",
        (
            plain("method"),
            number("average_rank", 2),
            count("tasks"),
            number("critical_difference", 2),
            p_value("friedman_p", "p (Friedman)"),
        ),
        "1 is best. Methods whose average ranks are closer than the critical difference (Nemenyi, 0.05) are not "
        "distinguishable.",
    ),
    "frontier": _Layout(
        "{metric} on {task}",
        (
            *map(plain, ("method", "budget", "metric")),
            number("mean", 4),
            interval(signed=False),
            count("params", "final params"),
            count("seeds"),
            plain("pareto", "on the frontier"),
        ),
        "On the frontier: no other row is at least as good with at most as many parameters, and better in one of the "
        "two.",
    ),
    "decisions": _Layout(
        "What decisions changed",
        (
            plain("method"),
            *map(count, ("seed", "events")),
            count("removed", "components removed"),
            *map(count, ("added", "moved")),
            count("dropped", "sites dropped"),
            count("tied"),
            number("distance", 3, "distance from uniform"),
            number("rank_correlation", 2, "rank correlation"),
            plain("effect"),
        ),
        "Moved: removed at one site and added at another in one event. Distance from uniform: half the L1 distance "
        "between the sites’ shares of the parameters and those at one rank everywhere. Rank correlation: Spearman’s, "
        "between the sites’ scores at the first and the last decision.",
    ),
    "choices": _Layout(
        "How the settings were found",
        (
            plain("method"),
            learning_rate,
            plain("option"),
            number("score", 4, "validation score"),
            number("at_default", 4, "at the default rate", detail=True),
            plain("edge", "at an edge"),
            count("trials", detail=True),
            count("tuning_steps", "steps", detail=True),
            number("tuning_flops", 1, "TFLOP", factor=1e-12, detail=True),
            number("tuning_seconds", 0, "seconds", detail=True),
        ),
        "Every method has the same number of trials with the same seeds. The best mean score on the validation data "
        "decides, and among equals the lowest rate; the reported split is not read before. At an edge: no rate beyond "
        "the chosen one was tried. Steps, TFLOP and seconds: all trials of the method, beside those of its final arms.",
    ),
    "stability": _Layout(
        "Agreement of allocations",
        (
            plain("method"),
            count("seed"),
            plain("other_method"),
            count("other_seed"),
            *(number(name, 3) for name in ("ranks", "sites", "components")),
        ),
        "1 means equal. ranks: Σ min / Σ max over sites. sites: overlap of the sets of sites with an adapter of their "
        "own. components: overlap of the remaining initial rank components, where both arms cut some; only between "
        "methods with the same seed. Of many methods the page shows pairs of one method, and those with the baseline.",
    ),
    "published": _Layout(
        "Published results, from other models and setups",
        (
            *map(plain, ("task", "model", "method")),
            count("params"),
            plain("metric"),
            number("value", 2, "value (as printed)"),
            count("seeds"),
            *map(plain, ("source", "table", "note")),
        ),
    ),
}


def study_table(name: str, frame: pd.DataFrame, place: str = "") -> Table | None:
    """Lays out a frame, one of `Frames` or "published", or rows of it (`place` in words); None where it has no rows."""
    if frame.empty:
        return None
    known = _LAYOUTS[name]
    caption = known.caption.format_map({str(name): value for name, value in frame.iloc[0].items()})
    columns, note = known.columns, known.note
    if "margin" in frame.columns:
        columns = (*columns, *_MARGIN)
        note += _MARGIN_NOTE
    if "learned" in frame.columns:
        columns = (*columns, plain("learned"))
    if "stopped" in frame.columns:
        columns = (*columns, count("stopped", STOPPED, detail=True))
        note += f" Trials {STOPPED} of their steps were the method’s worse half by then; they are charged too."
    if "look" in frame.columns:
        note += " In rounds of seeds, p and interval (Holm) also hold over all looks; before the first there are none."
    return table(caption, frame, columns, frame=name, place=place, note=note, detail=known.detail)


def tables_over_tasks(frames: Frames) -> list[Table | None]:
    """Lays out the results over several tasks, one table per result and budget; none for a single task."""
    if len(frames.study.tasks) < 2:
        return []
    return [
        study_table(name, rows, budget_in_words(str(budget)) + selected_in_words(frames.study))
        for name, frame in (("pooled", in_words(frames.pooled)), ("average_ranks", frames.average_ranks))
        for budget, rows in frame.groupby("budget", sort=False)
    ]


def main_table(frames: Frames, cell: StoredStudy) -> Table:
    """Lays out scores, sizes, cost and status in one task and budget, the best score first, references at the end."""
    frame = best_first(in_cell(frames.table, cell), cell, f"{cell.metrics[0]}_mean")
    columns = [plain("method"), *map(score, cell.metrics), *map(count, ("seeds", "final_params"))]
    columns += [plain(name) for name in ("effect", "learned") if name in frame.columns]
    if _some_exempt(frame):
        columns.append(plain("exemption"))
    if (frame["status"] != "done").any():
        columns.append(plain("status"))
    columns += [*map(count, ("peak_params", "nonzero_params", "head_params")), *_COST]
    if frame["drift"].notna().any():
        columns.append(number("drift", 4))
    if "budget_difference" in frame.columns and frame["budget_difference"].notna().any():
        columns.append(number("budget_difference", 0, signed=True))
    note = (
        "Scores: mean ± standard deviation over seeds. Parameters are the adapter’s, with tied tensors counted once: "
        "after training (final), at most (peak), and those that are not zero; the head’s are additional. TFLOP: "
        "analytic, all passes of the run."
    )
    about = {"frame": "table", "place": cell_title(cell), "note": note}
    below = "Below each score: Student’s 95 % interval of the mean."
    shown = table("Scores, sizes and cost", frame, columns, detail=below, **about)
    return with_reference(shown, in_cell(frames.references, cell))


def standings(frames: Frames, cell: StoredStudy) -> pd.DataFrame:
    """Returns the table of one task and budget beside the differences in its primary metric, the best score first.

    `standing` is the verdict in few words, or what stands for it; the reference is a row without one.
    """
    metric = cell.metrics[0]
    rows = in_cell(frames.against, cell)
    rows = rows[rows["metric"] == metric]
    states = dict(by_method(in_cell(frames.learned, cell))[["method", "state"]].itertuples(index=False, name=None))
    verdicts = {row["method"]: brief(row) for row in rows.to_dict("records")} | {frames.baseline: "baseline"}
    beside = rows[["method", "difference", "low_holm", "high_holm", "p_holm", "seeds_needed", "seeds"]]
    main = in_cell(frames.table, cell).merge(beside.rename(columns={"seeds": "paired"}), "left", "method")

    def standing(row: Mapping[Any, Any]) -> str:
        if not row["seeds"]:
            return str(row["status"]).partition(":")[0]
        state = {NOTHING: "learned nothing", CEILING: "at the ceiling"}.get(states.get(row["method"], ""), "")
        baseline = row["method"] == frames.baseline
        return ", ".join(["baseline"] * baseline + [state] * bool(state)) or verdicts.get(row["method"], "not compared")

    main["standing"] = [standing(row) for row in main.to_dict("records")]
    # An object holds whole numbers beside rows that have none.
    main = pd.concat([main.astype(object), in_cell(frames.references, cell).assign(standing="").astype(object)])
    return best_first(main, cell, f"{metric}_mean")


def overview(frames: Frames, cell: StoredStudy) -> Table:
    """Lays out one task and budget for a terminal: the best score first, the baseline and the reference among them.

    Score, difference in the primary metric, parameters and verdict always stand; the rest where there is room.
    """
    metric, *others = cell.metrics
    main = standings(frames, cell)
    columns = [
        plain("method"),
        score(metric, 3),
        *([learning_rate] if "learning_rate" in main.columns else []),
        difference(f"difference to {frames.baseline}"),
        p_value("p_holm", "p (Holm)", detail=True, runs="paired"),
        needed("seeds_needed", "seeds needed", "more examples", detail=True),
        count("final_params", "params"),
        *(score(name, 3, detail=True) for name in others),
        count("seeds", detail=True),
        count("peak_params", "peak params", detail=True),
        *(replace(column, detail=True) for column in _COST),
        plain("standing", "verdict"),
    ]
    return table(cell_title(cell), main, columns)


def paper_table(frame: pd.DataFrame, metrics: Sequence[str], title: str, references: pd.DataFrame) -> Table:
    """Lays out a cell's main table as papers print it: scores, sizes and cost beside the primary metric's difference.

    `frame` holds rows of `Frames.table` with the differences under their names in CSV.
    """
    baselines = frame["baseline"].dropna()
    columns = [plain("method"), *map(score, metrics), *map(count, ("seeds", "final_params", "peak_params")), *_COST]
    if not baselines.empty:
        columns += [
            number("difference", 4, f"{metrics[0]} − {baselines.iloc[0]}", signed=True),
            interval("difference_low_holm", "difference_high_holm", "95 % interval (Holm)"),
            p_value("p_holm", "p (Holm)", runs="paired_seeds"),
            plain("verdict"),
        ]
    columns += [plain(name) for name in ("effect", "learned") if name in frame.columns]
    if _some_exempt(frame):
        columns.append(plain("exemption"))
    if (frame["status"] != "done").any():
        columns.append(plain("status"))
    return with_reference(table(title, frame, columns, frame="table"), references)


def notes(frames: Frames, cell: StoredStudy) -> list[str]:
    """Returns what the overview has no room for, one line per method."""
    lines = []
    for row in in_cell(frames.table, cell).to_dict("records"):
        exemption = row.get("exemption") and f"not at equal size ({row['exemption']})"
        state = "" if row["status"] == "done" else row["status"]
        status = state if len(state) <= _LONGEST_STATUS else f"{state[:_LONGEST_STATUS]}…"
        if said := list(filter(None, (status, row.get("learned"), row.get("effect"), exemption))):
            lines.append(f"{row['method']}: {'; '.join(said)}.")
    return lines


def _some_exempt(frame: pd.DataFrame) -> bool:
    return "exemption" in frame.columns and bool(frame["exemption"].fillna("").ne("").any())
