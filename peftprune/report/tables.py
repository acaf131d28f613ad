"""The report's tables: what a reader sees of each frame of a `StoredStudy`."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from peftprune.report.table import View, count, interval, number, p_value, score, view, words

_SIZES = ("seeds", "final_params", "peak_params", "nonzero_params", "head_params")
_TERA = 1e-12


def main_table(frame: pd.DataFrame, metrics: Sequence[str], title: str) -> View:
    """Scores, sizes, cost and status, one row a method.

    Args:
        frame: rows of `Comparison.table` of one task and budget.
        metrics: the task's metrics.
        title: task and budget in words.
    """
    columns = [words("method"), *map(score, metrics), *map(count, _SIZES)]
    columns += [number("flops", 1, "TFLOP", factor=_TERA), number("seconds", 0)]
    if "budget_difference" in frame.columns and frame["budget_difference"].notna().any():
        columns.append(number("budget_difference", 0, "off the budget", signed=True))
    if "exemption" in frame.columns and frame["exemption"].fillna("").ne("").any():
        columns.append(words("exemption"))
    note = (
        "Mean ± standard deviation over seeds, below it Student’s 95 % interval of the mean. Parameters are the "
        "adapter’s, tied tensors counted once: at the end (final), at most (peak), and those that are not zero; the "
        "head’s come on top. TFLOP: analytic, all passes of the run."
    )
    return view("Scores, sizes and cost", "table", frame, [*columns, words("status")], note, title)


def paper_table(frame: pd.DataFrame, metrics: Sequence[str], title: str) -> View:
    """The main table as a paper prints it: scores, sizes and cost beside the difference in the primary metric.

    Args:
        frame: rows of `Comparison.table` of one task and budget, with the primary metric's differences: `difference`,
            `difference_low`, `difference_high`, `p_holm` and `verdict`.
        metrics: the task's metrics, the primary one first.
        title: task and budget in words.
    """
    against = frame["baseline"].dropna()
    columns = [words("method"), *map(score, metrics), *map(count, ("seeds", "final_params", "peak_params"))]
    columns += [number("flops", 1, "TFLOP", factor=_TERA), number("seconds", 0)]
    if not against.empty:
        columns += [
            number("difference", 4, f"{metrics[0]} − {against.iloc[0]}", signed=True),
            interval("difference_low", "difference_high", "95 % interval"),
            p_value("p_holm", "p (Holm)"),
            words("verdict"),
        ]
    if (frame["status"] != "done").any():
        columns.append(words("status"))
    return view(title, "table", frame, columns)


def difference_table(frame: pd.DataFrame, title: str) -> View:
    """Every method against the baseline, one row a method and metric: rows of `Comparison.against` of one cell."""
    columns = [
        words("method"),
        words("metric"),
        number("difference", 4, signed=True),
        interval("low", "high", "95 % interval"),
        p_value("p", "p"),
        p_value("p_holm", "p (Holm)"),
        number("effect_size", 2, "effect size", signed=True),
        number("probability", 2, "chance to improve"),
        number("detectable", 4, "smallest detectable"),
        count("seeds"),
        words("verdict"),
    ]
    note = (
        "Paired bootstrap over examples and seeds; p corrected over methods by Holm. Effect size: Hedges’ g of the "
        "scores paired by seed. Chance to improve: that of a run of the method to score above one of the baseline. "
        "Smallest detectable: the true difference that a study of this size finds with a power of 0.8."
    )
    return view(f"Differences to {frame['baseline'].iloc[0]}", "against", frame, columns, note, title)


def mcnemar_table(frame: pd.DataFrame, title: str) -> View:
    """Model against model, one row a method and seed: rows of `StoredStudy.mcnemar` of one cell."""
    columns = [
        words("method"),
        count("seed"),
        count("only_method", "right: method only"),
        count("only_baseline", "right: baseline only"),
        p_value("p", "p"),
        p_value("p_holm", "p (Holm)"),
    ]
    note = "McNemar’s exact test. Each row speaks of two trained models, not of the methods; seeds are never pooled."
    return view(f"Models against those of {frame['baseline'].iloc[0]}", "mcnemar", frame, columns, note, title)


def pooled_table(frame: pd.DataFrame, title: str) -> View:
    """All tasks together: rows of `StoredStudy.pooled` of one budget."""
    columns = [
        words("method"),
        count("tasks"),
        count("pairs"),
        number("gain", 4, signed=True),
        interval("low", "high", "95 % interval"),
        p_value("p", "p"),
        p_value("p_holm", "p (Holm)"),
        number("effect_size", 2, "effect size", signed=True),
        number("probability", 2, "chance to improve"),
        words("verdict"),
    ]
    note = (
        "Gain: mean difference in the tasks’ primary metrics over pairs of runs that share task and seed. It speaks of "
        "these tasks, not of new ones."
    )
    return view(f"Pairs pooled over tasks, against {frame['baseline'].iloc[0]}", "pooled", frame, columns, note, title)


def ranks_table(frame: pd.DataFrame, title: str) -> View:
    """Average ranks over tasks: rows of `StoredStudy.average_ranks` of one budget."""
    columns = [
        words("method"),
        number("average_rank", 2),
        count("tasks"),
        number("critical_difference", 2, "critical difference"),
        p_value("friedman_p", "p (Friedman)"),
    ]
    note = "1 is best. Average ranks closer than the critical difference (Nemenyi, 0.05) cannot be told apart."
    return view("Average ranks", "average_ranks", frame, columns, note, title)


def frontier_table(frame: pd.DataFrame, task: str) -> View:
    """Quality against parameters: rows of `StoredStudy.frontier` of one task."""
    columns = [
        words("method"),
        words("budget"),
        words("metric"),
        number("mean", 4),
        interval("low", "high", "95 % interval", signed=False),
        count("params", "final params"),
        count("seeds"),
        words("pareto", "on the frontier"),
    ]
    note = (
        "On the frontier: no other row is at least as good with at most as many parameters, and better in one of "
        "the two."
    )
    return view(f"{frame['metric'].iloc[0]} on {task}", "frontier", frame, columns, note)


def stability_table(frame: pd.DataFrame, title: str) -> View:
    """How far allocations agree: rows of `StoredStudy.stability` of one cell."""
    columns = [
        words("method"),
        count("seed"),
        words("other_method"),
        count("other_seed"),
        number("ranks", 3),
        number("sites", 3),
        number("components", 3),
    ]
    note = (
        "1 means equal. ranks: Σ min / Σ max over sites. sites: overlap of the sets of sites with an adapter of their "
        "own. components: overlap of the initial rank components that are left, where both cut some; only between "
        "methods of one seed."
    )
    return view("Agreement of allocations", "stability", frame, columns, note, title)


def published_table(frame: pd.DataFrame) -> View:
    """Figures that papers printed."""
    columns = [
        words("task"),
        words("model"),
        words("method"),
        count("params"),
        words("metric"),
        number("value", 2, "value (as printed)"),
        count("seeds"),
        words("source"),
        words("table"),
        words("note"),
    ]
    return view("Published figures, from other models and setups", "published", frame, columns)
