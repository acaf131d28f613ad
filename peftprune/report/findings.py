"""The question of a study and its answer, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftprune.analysis.runs import arm_rows, method_rows

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy


from dataclasses import dataclass

import pandas as pd

from peftprune.report.table import missing, p_text, rounded, span
from peftprune.study.stored_study import StoredStudy

_DECIDED = ("better", "worse")
_POWERLESS = "cannot reach significance"


@dataclass(frozen=True)
class Finding:
    """One method's outcome: its label, the verdict, and the numbers behind it in a sentence."""

    method: str
    verdict: str
    sentence: str

    @property
    def tone(self) -> str:
        """ "better", "worse" or "open": how the page marks it."""
        return self.verdict if self.verdict in _DECIDED else "open"


@dataclass(frozen=True)
class Answer:
    """What one task and budget, or several tasks together, say: a headline, findings, and their limits."""

    title: str
    headline: str
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]


def listed(names: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return " ".join([", ".join(names[:-1]), last, names[-1]]) if len(names) > 1 else "".join(names)


def cell_title(cell: StoredStudy) -> str:
    """Task and budget of one cell."""
    return f"{cell.tasks[0]}, {budget_in_words(cell.budgets[0])}"


def question(comparison: StoredStudy, baseline: str) -> str:
    """What the study asks."""
    tasks = listed(comparison.tasks)
    budgets = listed([budget_in_words(b) for b in comparison.budgets])
    others = [m for m in comparison.methods if m != baseline]
    if not others:
        return f"How does {baseline} do on {tasks} under {budgets}?"
    verb = "Does" if len(others) == 1 else "Do"
    shared = "the same steps and settings" if "paper" not in comparison.budgets else "the same data and seeds"
    return f"{verb} {listed(others)} do better than {baseline} on {tasks}, under {budgets} with {shared}?"


def cell_answer(cell: StoredStudy, frame: pd.DataFrame, baseline: str) -> Answer:
    """What one task and budget say.

    Args:
        cell: the study, restricted to one task and one budget.
        frame: its rows of `Comparison.against`.
        baseline: the method that the others are held against.
    """
    metric = cell.metrics[0]
    rows = frame[frame["metric"] == metric].to_dict("records")
    findings = tuple(Finding(r["method"], r["verdict"], _difference(r, metric)) for r in rows)
    limits = [*_size_limits(cell, rows), *_unfinished(cell)]
    return Answer(cell_title(cell), _headline(cell, findings, baseline), findings, tuple(limits))


def pooled_answers(comparison: StoredStudy, pooled: pd.DataFrame, ranks: pd.DataFrame) -> list[Answer]:
    """What several tasks say together, one answer a budget; none for a single task or where nothing is finished."""
    if len(comparison.tasks) < 2:
        return []
    found = []
    for budget, rows in pooled.groupby("budget", sort=False):
        baseline = rows["baseline"].iloc[0]
        findings = tuple(Finding(r["method"], r["verdict"], _gain(r)) for r in rows.to_dict("records"))
        title = f"All tasks together, {budget_in_words(str(budget))}"
        limits = (_ranks(ranks[ranks["budget"] == budget]), "This speaks of these tasks, not of new ones.")
        found.append(Answer(title, _told(findings, baseline), findings, tuple(filter(None, limits))))
    return found


def detectable(frame: pd.DataFrame) -> tuple[str, ...]:
    """What differences a study of this size could have found, one sentence a metric.

    Args:
        frame: rows of `Comparison.against` of one task and budget.
    """
    found = []
    for metric, rows in frame.groupby("metric", sort=False):
        known = rows.dropna(subset=["detectable"]).to_dict("records")
        same = rows[rows["detectable"].isna()]["method"].tolist()
        if known:
            least = listed([f"{rounded(r['detectable'], 4)} for {r['method']}" for r in known])
            found.append(f"In {metric}, with a power of 0.8, this study finds a true difference of {least}.")
        if same:
            whom = rows["baseline"].iloc[0]
            found.append(f"In {metric}, {listed(same)} and {whom} agree on every example, which shows no noise.")
    return tuple(found)


def _headline(cell: StoredStudy, findings: Sequence[Finding], baseline: str) -> str:
    if findings:
        return _told(findings, baseline)
    if cell.methods == [baseline]:
        return f"The study has one method, {baseline}: there is nothing to compare it with."
    statuses = method_rows(cell).set_index("method")["seeds"]
    if not statuses[baseline]:
        return f"No run of {baseline} has finished here, so nothing can be held against it."
    return f"No other method has finished a seed that {baseline} has finished too: nothing can be compared yet."


def _told(findings: Sequence[Finding], baseline: str) -> str:
    groups = {tone: [f.method for f in findings if f.tone == tone] for tone in (*_DECIDED, "open")}
    if all(f.verdict.startswith(_POWERLESS) for f in findings):
        sizes = dict.fromkeys(f.verdict.removeprefix(_POWERLESS).removeprefix(" with ") for f in findings)
        return (
            f"This study cannot tell any method apart from {baseline}: it {_POWERLESS} with {listed([*sizes], 'or')}."
        )
    parts = [f"{listed(groups[t])} {_are(groups[t])} {t} than {baseline}" for t in _DECIDED if groups[t]]
    if not parts:
        who = "No method" if len(findings) > 1 else findings[0].method
        return f"{who} {'can' if len(findings) > 1 else 'cannot'} be told apart from {baseline}."
    if groups["open"]:
        parts.append(f"{listed(groups['open'])} cannot be told apart from it")
    return "; ".join(parts) + "."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _difference(row: Mapping[Any, Any], metric: str) -> str:
    sign = "higher" if row["difference"] > 0 else "lower"
    amount = "equal" if row["difference"] == 0 else f"{rounded(abs(row['difference']), 4)} {sign}"
    return f"{metric} {amount} (95 % interval {span(row['low'], row['high'])}, p = {p_text(row['p_holm'])} after Holm)"


def _gain(row: Mapping[Any, Any]) -> str:
    interval = "" if missing(row["low"]) else f"95 % interval {span(row['low'], row['high'])}, "
    return (
        f"{rounded(row['gain'], 4, True)} on average over {_counted(row['pairs'], 'pair')} of "
        f"{_counted(row['tasks'], 'task')} ({interval}p = {p_text(row['p_holm'])} after Holm)"
    )


def _size_limits(cell: StoredStudy, rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    if not rows:
        return []
    task = cell.request["tasks"][0]
    split, examples = next(iter(task["evaluation_examples"].items()))
    seeds = sorted({r["seeds"] for r in rows})
    found = [
        f"Measured on {task['evaluation_split']}, {examples:,} examples ({split}), with "
        f"{listed([str(n) for n in seeds], 'or')} seed{'s' * (seeds != [1])}."
    ]
    known = [(r["detectable"], r["method"]) for r in rows if not missing(r["detectable"])]
    if known:
        (least, best), (most, worst) = min(known), max(known)
        which = (
            rounded(least, 4) if len(known) == 1 else f"{rounded(least, 4)} ({best}) to {rounded(most, 4)} ({worst})"
        )
        found.append(
            f"The smallest true difference in {cell.metrics[0]} that a study of this size finds with a power of 0.8 is "
            f"{which}; smaller ones are found less often."
        )
    if 1 in seeds:
        found.append("With one seed, intervals speak of the two trained models, not of the methods.")
    return found


def _unfinished(cell: StoredStudy) -> list[str]:
    runs = arm_rows(cell)
    open_ = runs[runs["status"] != "done"].to_dict("records")
    names = {
        what: [f"{r['method']} (seed {r['seed']})" for r in open_ if (r["status"] == "pending") == (what == "pending")]
        for what in ("failed", "pending")
    }
    found = []
    if names["failed"]:
        found.append(f"Failed, hence not counted: {listed(names['failed'])}.")
    if names["pending"]:
        found.append(f"Not finished, hence not counted: {listed(names['pending'])}.")
    return found


def _ranks(frame: pd.DataFrame) -> str:
    if frame.empty:
        return ""
    placed = frame.sort_values("average_rank", kind="stable")
    ranks = listed([f"{r['method']} {rounded(r['average_rank'], 2)}" for r in placed.to_dict("records")])
    least = rounded(frame["critical_difference"].iloc[0], 2)
    return f"Average ranks: {ranks}. Ranks closer than {least} (Nemenyi, 0.05) cannot be told apart."


def budget_in_words(label: str) -> str:
    """A budget's label as a title says it."""
    return "each method's published setting" if label == "paper" else f"budget {label.replace(',', ', ')}"
