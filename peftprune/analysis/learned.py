"""Whether arms learned anything: their answers and scores compared with what needs no training.

Every reader asks this file. It needs stored predictions only, so it holds for studies of any age.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from peftprune.analysis.predictions import measure
from peftprune.analysis.runs import KEY, in_cell
from peftprune.errors import UsageError
from peftprune.stats import Verdict
from peftprune.stats.metrics import METRICS
from peftprune.study.stored_study import StoredStudy
from peftprune.tasks.kinds import KINDS

CELL = ["task", "budget"]
NOTHING, CEILING, UNTRAINED = "nothing", "ceiling", "untrained"
_CONSTANT = 0.01
"""Predicted numbers that vary by less than this share of the labels' deviation count as one answer."""
_LONGEST = 40
_MOVED = 0.1
"""Share of the head-only loss's range that a method's training loss has to move by."""


def learned(study: StoredStudy, known: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per finished arm: what it shows of learning; `known` are the `references`.

    `state` is "nothing" where the arm gives one answer for every example, or scores no better in the task's primary
    metric than the reference: the majority class of the reported labels, their mean, or for generated text the
    untrained model, where the study has one, and otherwise an empty answer. It is "ceiling" where the score is the
    metric's highest, "untrained" for the untrained model itself, and empty otherwise. `learned` says the first two in
    words.
    """
    rows = []
    for cell in study.cells():
        what = measure(cell, cell.tasks[0], cell.metrics[0])
        name, score = _reference(cell, in_cell(known, cell))
        for key, folder, result in cell.finished():
            state, words, value = "", "", result["metrics"][cell.metrics[0]]
            if value >= what.limits[1]:
                state, words = CEILING, f"at the ceiling ({value:.3f})"
            elif _untrained(result):
                state = UNTRAINED
            elif (answer := _single_answer(folder, what.split)) is not None:
                state, words = NOTHING, f"predicts {answer} for every example"
            elif value <= score:
                state, words = NOTHING, f"no better than the {name} ({score:.3f})"
            rows.append({**key, "state": state, "learned": words})
    return pd.DataFrame(rows, columns=[*KEY, "state", "learned"])


def references(study: StoredStudy) -> pd.DataFrame:
    """Returns what needs no training, one row per task and budget: the majority class, or the labels' mean.

    `method` names it, and each metric's score is in its column `_mean`, as in `Frames.table`. Generation has none.
    """
    rows = []
    for cell in study.cells():
        frame = next((f for _, folder, _ in cell.finished() if (f := _predictions(folder)) is not None), None)
        kind = KINDS[cell.request["tasks"][0]["kind"]]
        if frame is None or kind.writes_text:
            continue
        measures = {metric: measure(cell, cell.tasks[0], metric) for metric in cell.metrics}
        labels = {what.split: frame.loc[frame["split"] == what.split, "label"] for what in measures.values()}
        first = labels[measures[cell.metrics[0]].split]
        answer = first.mode()[0] if kind.has_classes else first.mean()
        row: dict[str, Any] = {"task": cell.tasks[0], "budget": cell.budgets[0]}
        row["method"] = f"majority ({answer})" if kind.has_classes else f"mean ({answer:.4g})"
        for metric, what in measures.items():
            row[f"{metric}_mean"] = METRICS[what.name].compute([answer] * len(labels[what.split]), labels[what.split])
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else [*CELL, "method"])


def by_method(found: pd.DataFrame) -> pd.DataFrame:
    """Returns state and words of each task, budget and method: a state that all its arms share, and what some show."""
    rows = []
    for key, arms in found.groupby([*CELL, "method"], sort=False):
        said = arms.loc[arms["learned"] != "", "learned"].value_counts(sort=False)
        words = [f"{text}{f' in {n} of {len(arms)} seeds' * (n < len(arms))}" for text, n in said.items()]
        state = arms["state"].iloc[0] if arms["state"].nunique() == 1 else ""
        rows.append([*key, state, ", ".join(words)])
    return pd.DataFrame(rows, columns=[*CELL, "method", "state", "learned"])


def with_learned(frame: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Returns a frame of methods with the words of `by_method` in the column `learned`, left out where it is empty.

    A frame over several tasks names those on which all arms of a method learned nothing. Where neither a method nor its
    baseline learned anything, the verdict says so instead.
    """
    methods = by_method(found)
    if "task" in frame.columns:
        words = dict(zip(_keys(methods), methods["learned"], strict=True))
    else:
        lost = methods[methods["state"] == NOTHING].groupby(["budget", "method"])["task"].agg(", ".join).reset_index()
        words = dict(zip(_keys(lost.drop(columns="task")), "learned nothing on " + lost["task"], strict=True))
    values = [words.get(key, "") for key in _keys(frame)]
    if any(values):
        frame = frame.assign(learned=values)
    if "verdict" in frame.columns and not frame.empty:
        idle = methods.assign(idle=methods["state"].isin((NOTHING, UNTRAINED)))
        nothing = idle.groupby([c for c in (*CELL, "method") if c in frame.columns])["idle"].all().to_dict()
        both = [
            nothing.get(ours, False) and nothing.get((*ours[:-1], baseline), False)
            for ours, baseline in zip(_keys(frame), frame["baseline"], strict=True)
        ]
        needed = [name for name in ("seeds_needed", "pairs_needed") if name in frame.columns]
        idle_pairs = pd.Series(both, frame.index)
        frame = frame.assign(verdict=frame["verdict"].mask(idle_pairs, Verdict.NOTHING_LEARNED))
        frame[needed] = frame[needed].mask(idle_pairs)
    return frame


def undertuned(cell: StoredStudy, found: pd.DataFrame, history: pd.DataFrame) -> dict[str, str]:
    """Returns the methods of one task and budget that may need another learning rate, with the reason.

    They answer one class in every arm, or their training loss moved by less than a tenth of the range of the loss that
    trains the head alone, where the study has such an arm. A loss moves by the difference between the means of the
    first and the last fifth of its logged values, and its range is the highest minus the lowest; both are means over
    seeds.
    """
    idle = [row for row in by_method(found).to_dict("records") if row["state"] == NOTHING]
    reasons = {row["method"]: row["learned"] for row in idle if "predicts" in row["learned"]}
    heads = {key["method"] for key, _, result in cell.finished() if not result["ledger"]["final_params"]}
    losses = {m: [arm["loss"] for _, arm in rows.groupby("seed")] for m, rows in history.groupby("method", sort=False)}
    ranges = [arm.max() - arm.min() for m in heads & losses.keys() for arm in losses[m]]
    if ranges:
        least = _MOVED * sum(ranges) / len(ranges)
        for method, arms in losses.items():
            moved = sum(abs(_tail(arm, -1) - _tail(arm, 1)) for arm in arms) / len(arms)
            if method not in heads and moved < least:
                reasons.setdefault(str(method), f"its training loss moved by {moved:.2g}")
    return reasons


def _tail(losses: pd.Series[float], side: int) -> float:
    """Returns the mean of the first (1) or last (−1) fifth."""
    return float(losses.iloc[::side].iloc[: max(1, len(losses) // 5)].mean())


def _reference(cell: StoredStudy, known: pd.DataFrame) -> tuple[str, float]:
    """Returns name and primary score of what a method has to exceed."""
    metric = cell.metrics[0]
    if not known.empty:
        (row,) = known.to_dict("records")
        return str(row["method"]).partition(" ")[0], float(row[f"{metric}_mean"])
    scores = [result["metrics"][metric] for _, _, result in cell.finished() if _untrained(result)]
    return ("untrained model", sum(scores) / len(scores)) if scores else ("empty answer", 0.0)


def _untrained(result: Mapping[str, Any]) -> bool:
    return result["ledger"].get("steps") == 0


def _single_answer(folder: Any, split: str) -> str | None:
    """Returns the answer that an arm gives for every example; None where it gives several."""
    frame = _predictions(folder)
    if frame is None:
        return None
    part = frame[frame["split"] == split]
    given = part["prediction"]
    if "label" in part and pd.api.types.is_float_dtype(given):
        return f"about {given.mean():.4g}" if given.std() <= _CONSTANT * part["label"].std() else None
    if given.nunique() > 1:
        return None
    text = " ".join(str(given.iloc[0]).split())
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…") or "nothing"


def _predictions(folder: Any) -> pd.DataFrame | None:
    try:
        return folder.read_predictions()
    except UsageError:
        # Readers of predictions name the damaged file; scores must not depend on it.
        return None


def _keys(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame[[c for c in (*CELL, "method") if c in frame.columns]].itertuples(index=False, name=None))
