"""The question of a study and its answers, in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import t

from peftprune.analysis.frames import Frames
from peftprune.analysis.learned import CEILING, NOTHING, UNTRAINED, by_method, undertuned
from peftprune.analysis.predictions import measure
from peftprune.analysis.runs import exempt, in_cell
from peftprune.report.table import bounded, grouped, missing, p_text, rounded, span
from peftprune.stats import Verdict, shared_deviation
from peftprune.study.stored_study import StoredStudy

_WORDS = {
    Verdict.BETTER: "better",
    Verdict.WORSE: "worse",
    Verdict.EQUIVALENT: "equivalent within {margin}",
    Verdict.NOT_WORSE: "not worse by more than {margin}",
    Verdict.UNDECIDED: "undecided",
    Verdict.NOT_DISTINGUISHABLE: "not distinguishable at this size",
    Verdict.CANNOT_REACH_SIGNIFICANCE: "cannot reach significance with {size}",
    Verdict.NOTHING_LEARNED: "nothing was learned",
}
_BRIEF = {
    Verdict.NOT_DISTINGUISHABLE: "not certain",
    Verdict.CANNOT_REACH_SIGNIFICANCE: "not certain",
    Verdict.NOTHING_LEARNED: "learned nothing",
}
NOTHING_LEARNED = "Nothing was learned: train longer or raise the rate."
NAMED = 5
"""Methods that a title names; of more it says the number."""
_FEW_SEEDS = 3
_UNEQUAL = 0.05
_HEADLINES = {
    Verdict.BETTER: "better than {baseline}",
    Verdict.WORSE: "worse than {baseline}",
    Verdict.EQUIVALENT: "equivalent to {baseline} within {margin}",
    Verdict.NOT_WORSE: "not worse than {baseline} by more than {margin}",
}


@dataclass(frozen=True)
class Finding:
    """One method's outcome: verdict in words, and a sentence with the numbers.

    `size` is the number of pairs or seeds behind it ("2 seeds"), `margin` the metric's margin as text, if it has one.
    """

    method: str
    verdict: Verdict
    size: str
    words: str
    sentence: str
    margin: str = ""

    @property
    def tone(self) -> str:
        """ "better", "worse", "met" for a verdict within the margin, or "open": how the page marks it."""
        if self.verdict in (Verdict.BETTER, Verdict.WORSE):
            return self.verdict.value
        return "met" if self.verdict in _HEADLINES else "open"


@dataclass(frozen=True)
class Answer:
    """The result for one task and budget, or for several tasks together: a headline, findings, and limits."""

    title: str
    headline: str
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]


def in_words(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns `Frames.against` or `Frames.pooled`, or rows of it, with verdicts in words."""
    words = [_verdict(row) for row in frame.to_dict("records")]
    return (frame.assign(verdict=words) if words else frame).drop(columns=["effect", "learned"], errors="ignore")


def brief(row: Mapping[Any, Any]) -> str:
    """Returns the verdict of a row of `Frames.against` in as few words as a narrow table has room for."""
    return _BRIEF.get(row["verdict"], row["verdict"].value)


def best_first(rows: pd.DataFrame, cell: StoredStudy, name: str) -> pd.DataFrame:
    """Returns rows of a task and budget by a column in the primary metric, the best first."""
    higher = measure(cell, cell.tasks[0], cell.metrics[0]).higher_is_better
    return rows.sort_values(name, ascending=not higher, kind="stable", key=lambda v: v.astype(float))


def best(frames: Frames, cell: StoredStudy) -> str:
    """Returns one sentence on the best method of a cell that meets the budget, with what is known of its lead."""
    if said := without_verdict(frames, cell):
        return said
    metric, baseline = cell.metrics[0], frames.baseline
    rows = in_cell(frames.table, cell)
    rows = rows[(rows["seeds"] > 0) & ~rows["method"].isin(exempt(in_cell(frames.runs, cell)))]
    known = best_first(rows, cell, f"{metric}_mean").set_index("method")[f"{metric}_mean"]
    if len(known) < 2:
        return ""
    first = baseline if known.get(baseline) == known.iloc[0] else str(known.index[0])
    other = str(known.index.drop(first)[0]) if first == baseline else baseline
    rows = in_cell(frames.against, cell)
    rows = rows[(rows["metric"] == metric) & rows["method"].isin((first, other))]
    if rows.empty:
        return f"Best mean: {first}, {metric} {rounded(known.iloc[0], 3)}."
    row = rows.iloc[0].drop(["effect", "learned"], errors="ignore").to_dict()
    if row["difference"] == 0:
        return f"{first} and {other} score the same."
    if first == baseline:
        row |= {"difference": -row["difference"], "low_holm": -row["high_holm"], "high_holm": -row["low_holm"]}
    return f"Best mean: {first}, {rounded(row['difference'], 3, True)} over {other} ({_certainty(row)})."


def _certainty(row: Mapping[Any, Any]) -> str:
    """Returns what is known of the lead in a row of `Frames.against`."""
    if row["verdict"] in (Verdict.BETTER, Verdict.WORSE):
        return f"95 % interval {span(row['low_holm'], row['high_holm'])}"
    if row["verdict"] in _HEADLINES:
        return _verdict(row)
    if row["seeds"] == 1:
        return "not certain: one seed does not show how seeds vary"
    if missing(row["seeds_needed"]):
        return "not certain"
    if math.isinf(row["seeds_needed"]):
        return "not certain; only more test examples would tell a difference of this size"
    return f"not certain; about {grouped(row['seeds_needed'])} seeds would tell a difference of this size"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Returns `a, b and c`."""
    return " ".join([", ".join(names[:-1]), last, names[-1]]) if len(names) > 1 else "".join(names)


def few(methods: Sequence[str]) -> str:
    """Returns methods by name, or how many they are."""
    return listed(methods) if len(methods) <= NAMED else f"{len(methods)} methods"


def budget_in_words(label: str) -> str:
    """Returns a budget's label for a title."""
    return "each method's published setting" if label == "paper" else f"budget {label.replace(',', ', ')}"


def cell_title(cell: StoredStudy) -> str:
    """Returns task and budget of one cell in words."""
    return f"{cell.tasks[0]}, {budget_in_words(cell.budgets[0])}{selected_in_words(cell)}"


def selected_in_words(study: StoredStudy) -> str:
    """Returns what the captions of a study that selects on what it reports add; "" for others."""
    selects = study.request["settings"].get("select") == "paper"
    return ", best checkpoint on the reported split" if selects else ""


def question(study: StoredStudy, baseline: str) -> str:
    """Returns the question that a study answers."""
    tasks = listed(study.tasks)
    budgets = listed([budget_in_words(b) for b in study.budgets])
    others = [m for m in study.methods if m != baseline]
    if not others:
        return f"How does {baseline} perform on {tasks}, under {budgets}?"
    verb, named = "Does" if len(others) == 1 else "Do", few(others)
    shared = "the same steps and settings" if "paper" not in study.budgets else "the same data and seeds"
    return f"{verb} {named} perform better than {baseline} on {tasks}, under {budgets} with {shared}?"


def cell_answer(frames: Frames, cell: StoredStudy) -> Answer:
    """Returns the result for one task and budget, a cell of the study."""
    metric, rows = cell.metrics[0], in_cell(frames.against, cell)
    found = best_first(rows[rows["metric"] == metric], cell, "difference").to_dict("records")
    findings = tuple(_finding(r, _difference(r, metric)) for r in found)
    runs = in_cell(frames.runs, cell)
    limits = (
        *_size_limits(cell, found),
        *_shared_deviation(runs, found, metric),
        *_margin_limits(found, metric),
        *rounds_in_words(frames, cell),
        *_exempt(runs),
        *_unfinished(runs),
        *_learned(frames, cell),
    )
    headline = without_verdict(frames, cell) or _headlines(findings, exempt(runs), frames.baseline)
    if not findings:
        headline = _nothing_compared(cell, runs, frames.baseline)
    return Answer(cell_title(cell), headline, findings, limits)


def without_verdict(frames: Frames, cell: StoredStudy) -> str:
    """Returns the sentence that stands for a verdict where no arm learned, or all are at the ceiling; else ""."""
    states = set(in_cell(frames.learned, cell)["state"]) - {UNTRAINED}
    if states == {CEILING}:
        return "Every arm is at the ceiling: take a harder task, less data or fewer steps."
    return NOTHING_LEARNED if states == {NOTHING} else ""


def pooled_answers(frames: Frames) -> list[Answer]:
    """Returns the results over several tasks, one per budget; none for a single task or where nothing is finished."""
    if len(frames.study.tasks) < 2:
        return []
    found = []
    for budget, rows in frames.pooled.groupby("budget", sort=False):
        findings = tuple(_finding(r, _gain(r)) for r in rows.to_dict("records"))
        title = f"All tasks together, {budget_in_words(str(budget))}"
        ranks = frames.average_ranks[frames.average_ranks["budget"] == budget]
        limits = (_ranks(ranks), "This result describes these tasks, not new ones.")
        found.append(Answer(title, _headline(findings, frames.baseline), findings, tuple(filter(None, limits))))
    return found


def _nothing_compared(cell: StoredStudy, runs: pd.DataFrame, baseline: str) -> str:
    if cell.methods == [baseline]:
        return f"The study has one method, {baseline}: there is nothing to compare it with."
    if baseline not in set(runs[runs["status"] == "done"]["method"]):
        return f"No run of {baseline} has finished here, so there is nothing to compare with."
    return f"No other method has finished a seed that {baseline} has finished too: nothing can be compared yet."


def _headlines(findings: Sequence[Finding], outside: set[str], baseline: str) -> str:
    """Returns the headline; methods that do not meet the budget have one of their own."""
    bound = [f for f in findings if f.method not in outside]
    others = [f for f in findings if f.method in outside]
    parts = [_headline(bound, baseline)] if bound else []
    if others:
        parts.append(f"Outside the budget: {_headline(others, baseline)}")
    return " ".join(parts)


def _headline(findings: Sequence[Finding], baseline: str) -> str:
    idle = [f.method for f in findings if f.verdict is Verdict.NOTHING_LEARNED]
    findings = [f for f in findings if f.method not in idle]
    if not findings:
        return NOTHING_LEARNED
    if idle:
        return f"{_headline(findings, baseline)} {listed([baseline, *idle])} learned nothing."
    if all(f.verdict is Verdict.CANNOT_REACH_SIGNIFICANCE for f in findings):
        sizes = listed([*dict.fromkeys(f.size for f in findings)], "or")
        words = _WORDS[Verdict.CANNOT_REACH_SIGNIFICANCE].format(size=sizes)
        return f"This study cannot distinguish any method from {baseline}: it {words}."
    margin = findings[0].margin
    parts = []
    for verdict, words in _HEADLINES.items():
        if found := [f.method for f in findings if f.verdict is verdict]:
            parts.append(f"{_are(found)} {words.format(baseline=baseline, margin=margin)}")
    if not parts:
        who = "No method is" if len(findings) > 1 else f"{findings[0].method} is not"
        return f"{who} distinguishable from {baseline}{f', nor equivalent to it within {margin}' if margin else ''}."
    if open_ := [f.method for f in findings if f.verdict not in _HEADLINES]:
        parts.append(f"{_are(open_)} {'undecided' if margin else 'not distinguishable from it'}")
    return "; ".join(parts) + "."


def _are(names: Sequence[str]) -> str:
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"


def _finding(row: Mapping[Any, Any], sentence: str) -> Finding:
    return Finding(row["method"], row["verdict"], _size(row), _verdict(row), sentence, _margin(row))


def _margin(row: Mapping[Any, Any]) -> str:
    return "" if missing(row.get("margin")) else f"{row['margin']:g}"


def _verdict(row: Mapping[Any, Any]) -> str:
    """Returns the verdict of a row of `Frames.against` or `Frames.pooled` in words, with `effect` and `learned`."""
    margin, verdict = _margin(row), row["verdict"]
    words = _WORDS[verdict].format(size=_size(row), margin=margin)
    inside = margin and -row["margin"] < row["low_holm"] and row["high_holm"] < row["margin"]
    if inside and verdict in (Verdict.BETTER, Verdict.WORSE):
        words += f", by less than {margin}"
    words += f", look {row['look']} of {row['looks']}" if row.get("look", 0) < row.get("looks", 0) else ""
    notes = "; ".join(filter(None, (row.get("effect"), row.get("learned"))))
    return f"{words} ({notes})" if notes else words


def _size(row: Mapping[Any, Any]) -> str:
    """Returns the number of pairs or seeds behind a row of `Frames.pooled` or `Frames.against`."""
    return _counted(row["pairs"], "pair") if "pairs" in row else _counted(row["seeds"], "seed")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _difference(row: Mapping[Any, Any], metric: str) -> str:
    sign = "higher" if row["difference"] > 0 else "lower"
    amount = "equal" if row["difference"] == 0 else f"{rounded(abs(row['difference']), 4)} {sign}"
    found = f"{metric} {amount} ({_inference(row, row['seeds'])})"
    if not missing(row["seeds_needed"]) and math.isinf(row["seeds_needed"]):
        return f"{found}; to find a difference of this size, more seeds do not suffice: it needs more test examples"
    return found + _needed(row, "difference", "seeds")


def _needed(row: Mapping[Any, Any], what: str, runs: str) -> str:
    number = row[f"{runs}_needed"]
    return "" if missing(number) else f"; to find a {what} of this size, it needs about {grouped(number)} {runs}"


def _inference(row: Mapping[Any, Any], runs: int) -> str:
    """Returns interval and p, as far as there are any."""
    low, high = row["low_holm"], row["high_holm"]
    parts = [f"95 % interval {span(low, high)}"] if bounded(low, high) else ["no bounded interval"]
    parts += [p_text(row["p_holm"], "p")] if runs > 1 else []
    return f"{', '.join(parts)} after Holm"


def _gain(row: Mapping[Any, Any]) -> str:
    return (
        f"{rounded(row['gain'], 4, True)} on average over {_size(row)} of {_counted(row['tasks'], 'task')} "
        f"({_inference(row, row['pairs'])}){_needed(row, 'gain', 'pairs')}"
    )


def _size_limits(cell: StoredStudy, rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    if not rows:
        return []
    task = cell.request["tasks"][0]
    split, examples = next(iter(task["evaluation_examples"].items()))
    size = "" if f" examples ({split})" in task["evaluation_split"] else f", {examples:,} examples ({split})"
    seeds = sorted({r["seeds"] for r in rows})
    found = [
        f"Measured on {task['evaluation_split']}{size}, with "
        f"{listed([str(n) for n in seeds], 'or')} seed{'s' * (seeds != [1])}."
    ]
    known = [(r["detectable"], r["method"]) for r in rows if r["seeds"] > 1 and not missing(r["detectable"])]
    if known:
        ends = list(dict.fromkeys([min(known), max(known)]))
        which = " to ".join(rounded(value, 4) + f" ({method})" * (len(known) > 1) for value, method in ends)
        found.append(
            f"The smallest true difference in {cell.metrics[0]} that a study of this size detects with a power of 0.8 "
            f"is {which}; smaller ones are detected less often."
        )
    if 1 in seeds:
        found.append("With one seed, intervals describe the two trained models, not the methods, and p is left out.")
    return found


def _exempt(runs: pd.DataFrame) -> list[str]:
    """Returns which methods are not compared at equal size, with their parameters."""
    exempt = runs[runs["exemption"].notna()].drop_duplicates("method").to_dict("records")
    return [
        f"Not at equal size: {r['method']} has {r['final_params']:,.0f} parameters, the budget allows "
        f"{r['budget_params']:,.0f} ({r['exemption']})."
        for r in exempt
    ]


def _shared_deviation(runs: pd.DataFrame, rows: Sequence[Mapping[Any, Any]], metric: str) -> list[str]:
    """Returns a second estimate of the spread between seeds, where few seeds of one method hardly show it."""
    seeds = max((r["seeds"] for r in rows), default=0)
    if not 2 <= seeds <= _FEW_SEEDS:
        return []
    scores = runs[runs["status"] == "done"].groupby("method")[metric]
    found = shared_deviation([values.astype(float).to_numpy() for _, values in scores])
    freedom = _counted(seeds - 1, "degree")
    if missing(found.p):
        return []
    said = f"With {seeds} seeds, an interval rests on {freedom} of freedom. A second estimate pools all methods"
    if found.p <= _UNEQUAL:
        return [f"{said}, but their scores do not vary alike between seeds ({p_text(found.p, 'p')}, Bartlett)."]
    half = float(t.ppf(0.975, found.degrees)) * found.std * math.sqrt(2 / seeds)
    return [
        f"{said}: if their scores vary alike between seeds ({p_text(found.p, 'p')}, Bartlett), the standard deviation "
        f"is {rounded(found.std, 4)} with {found.degrees} degrees of freedom, and other seeds on these examples would "
        f"change a difference by up to {rounded(half, 4)} (95 %). Verdicts do not use it."
    ]


def _margin_limits(rows: Sequence[Mapping[Any, Any]], metric: str) -> list[str]:
    margin = _margin(rows[0]) if rows else ""
    return [
        f"By the margin that was set, differences of less than {margin} in {metric} do not matter: a method is "
        "equivalent where its interval lies between both margins, and not worse where it lies above the lower one."
    ] * bool(margin)


def _learned(frames: Frames, cell: StoredStudy) -> list[str]:
    """Returns what the baseline shows of learning, and at one rate the methods that may need another."""
    found = in_cell(frames.learned, cell)
    base = by_method(found[found["method"] == frames.baseline])["learned"].tolist()
    return [f"Baseline {frames.baseline}: {text}." for text in base if text] + undertuned_line(frames, cell)


def undertuned_line(frames: Frames, cell: StoredStudy) -> list[str]:
    """Returns one line on the methods that a comparison at one learning rate may not have tuned enough, if any."""
    if cell.request.get("tuning"):
        return []
    low = undertuned(cell, in_cell(frames.learned, cell), in_cell(frames.history, cell))
    who = listed([f"{method} ({why})" for method, why in low.items()])
    return [f"At this one learning rate, these may be undertuned: {who}. --tune gives each method its own."] * bool(low)


def rounds_in_words(frames: Frames, cell: StoredStudy) -> list[str]:
    """Returns, of a study in rounds, what its looks decided and saved; empty for any other."""
    reached = {method: at for (*place, method), at in frames.looks.items() if place == [*cell.tasks, *cell.budgets]}
    if not reached:
        return []
    sizes, baseline = cell.request["rounds"]["seeds"], cell.request["rounds"]["baseline"]
    before = {method: at for method, at in reached.items() if at.seeds < sizes[-1]}
    early = [f"{method} after {at.seeds} seeds" for method, at in before.items() if not at.open and method != baseline]
    found = [
        f"Looks after {listed([str(n) for n in sizes])} seeds, fixed before the first. p and intervals hold over all "
        "of them (Lan and DeMets’ spending of O’Brien and Fleming’s type, within Holm’s procedure)."
    ]
    if early:
        found.append(
            f"Stopped early: {listed(early)}. The difference of a method that stops early is overstated a little."
        )
    if baseline in before and reached[baseline].open:
        found.append("The last look has not come: the same command trains the next round.")
    elif len(ledger := in_cell(frames.ledger, cell)):
        steps = ledger.groupby("method")["steps"]
        spent, whole = steps.sum().sum(), steps.mean().sum() * sizes[-1]
        beside = f"with {sizes[-1]} seeds for all it is {whole:,.0f}" if spent < whole else "none was saved"
        found.append(f"{spent:,.0f} steps were trained; {beside}.")
    return found


def _unfinished(runs: pd.DataFrame) -> list[str]:
    names: dict[str, list[str]] = {"Failed": [], "Not finished": []}
    for run in runs[runs["status"] != "done"].to_dict("records"):
        group = "Not finished" if run["status"] == "pending" else "Failed"
        names[group].append(f"{run['method']} (seed {run['seed']})")
    return [f"{group}, therefore not counted: {listed(arms)}." for group, arms in names.items() if arms]


def _ranks(frame: pd.DataFrame) -> str:
    if frame.empty:
        return ""
    placed = frame.sort_values("average_rank", kind="stable")
    ranks = listed([f"{r['method']} {rounded(r['average_rank'], 2)}" for r in placed.to_dict("records")])
    least = rounded(frame["critical_difference"].iloc[0], 2)
    return f"Average ranks: {ranks}. Ranks closer than {least} (Nemenyi, 0.05) are not distinguishable."
