"""Tables for the terminal. They only lay out what they are given."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from peftprune.report.findings import budget_in_words

if TYPE_CHECKING:
    from peftprune.comparison import Comparison
    from peftprune.tasks import TaskInfo

_LONGEST_STATUS = 60
_PLAIN_WIDTH = 150
"""Columns used where stdout is a file or a pipe, so that no number is cut off."""


def _console() -> Console:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(width=width, markup=False, highlight=False)


def show_comparison(result: Comparison) -> None:
    """For each task and budget the main table, with what it was measured on; then what several tasks say together."""
    for cell in result.cells():
        _show_cell(cell)
    if len(result.tasks) > 1:
        _show_pooled(result)


def show_states(states: Sequence[Mapping[str, Any]]) -> None:
    """How many arms are in which state, and every arm's."""
    table = Table()
    for name in ("task", "budget", "method", "seed", "state", "checkpoint at step", "error"):
        table.add_column(name, overflow="fold")
    for row in states:
        cells = [row[n] for n in ("task", "budget", "method", "seed", "state", "step", "error")]
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    counts = {
        state: sum(row["state"] == state for row in states)
        for state in ("done", "training", "interrupted", "failed", "waiting")
    }
    console = _console()
    console.print(table)
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))


def _show_cell(result: Comparison) -> None:
    frame = result.table()
    table = Table(title=f"{result.tasks[0]}, {budget_in_words(result.budgets[0])}", title_justify="left")
    table.add_column("method", overflow="fold", min_width=8)
    for metric in result.metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    sizes = ("seeds", "final_params", "peak_params", "nonzero_params", "head_params", "TFLOP", "seconds")
    for name in sizes:
        table.add_column(name.replace("_", " "), justify="right")
    extra = [c for c in ("budget_difference", "exemption") if c in frame.columns]
    for name in [*extra, "status"]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in frame.to_dict("records"):
        cells = [_score(row[f"{m}_mean"], row[f"{m}_std"]) for m in result.metrics]
        cells += [_count(row[n]) for n in sizes[:-2]]
        cells += [_number(row["flops"], 1e-12, 1), _number(row["seconds"], 1, 0)]
        table.add_row(str(row["method"]), *cells, *[_count(row[n]) for n in extra], _shortened(str(row["status"])))
    console = _console()
    console.print(table)
    request = result.request
    split = request["tasks"][0]["evaluation_split"]
    console.print(
        f"Reported on: {split}. {len(request['seeds'])} seed(s), {request['sites']} sites, {request['dtype']}, "
        f"{request['threads']} thread(s). final: adapter parameters, ties counted once; "
        "± is the standard deviation over seeds."
    )
    _show_differences(console, result)


def _show_differences(console: Console, result: Comparison) -> None:
    """Each method against the first one, in words, and what a study of this size could have found."""
    frame = result.against()
    if frame.empty:
        return
    table = Table(title=f"Against {frame['baseline'].iloc[0]}", title_justify="left")
    for name in ("method", "metric", "difference", "95 % interval", "p (Holm)", "smallest detectable", "verdict"):
        table.add_column(name, justify="left" if name in ("method", "metric", "verdict") else "right")
    for row in frame.to_dict("records"):
        interval = f"{_signed(row['low'])} to {_signed(row['high'])}"
        numbers = (_signed(row["difference"]), interval, f"{row['p_holm']:.3f}", _number(row["detectable"], 1, 4))
        table.add_row(row["method"], row["metric"], *numbers, row["verdict"])
    console.print(table)
    console.print(
        "Paired bootstrap over examples and seeds; p corrected over methods by Holm. Smallest detectable: the true "
        "difference that a study of this size finds with a power of 0.8."
    )


def _show_pooled(result: Comparison) -> None:
    """Pairs pooled over tasks and seeds, and average ranks."""
    frame = result.pooled()
    if frame.empty:
        return
    ranks = result.average_ranks()
    console = _console()
    for budget, rows in frame.groupby("budget", sort=False):
        title = f"Over {len(result.tasks)} tasks, {budget_in_words(str(budget))}, against {rows['baseline'].iloc[0]}"
        table = Table(title=title, title_justify="left")
        columns = ("method", "pairs", "gain", "95 % interval", "p (Holm)", "average rank", "verdict")
        for name in columns:
            table.add_column(name, justify="left" if name in ("method", "verdict") else "right")
        placed = ranks[ranks["budget"] == budget].set_index("method")["average_rank"]
        table.add_row(rows["baseline"].iloc[0], *[""] * 4, _number(placed.get(rows["baseline"].iloc[0]), 1, 2), "")
        for row in rows.to_dict("records"):
            interval = "–" if _missing(row["low"]) else f"{_signed(row['low'])} to {_signed(row['high'])}"
            numbers = (
                _signed(row["gain"]),
                interval,
                f"{row['p_holm']:.3f}",
                _number(placed.get(row["method"]), 1, 2),
            )
            table.add_row(row["method"], str(row["pairs"]), *numbers, row["verdict"])
        console.print(table)
        found = ranks[ranks["budget"] == budget]
        if not found.empty:
            console.print(
                f"Average ranks closer than {found['critical_difference'].iloc[0]:.2f} (Nemenyi, 0.05) cannot be told "
                "apart."
            )
    console.print("gain: mean difference in the tasks' primary metrics over pairs that share task and seed.")


def show_plans(plans: Mapping[str, Mapping[str, Any]], model: str) -> None:
    """One row a method, then the ranks per site."""
    console = _console()
    table = Table(title=f"Plan for {model}", title_justify="left")
    for name in ("method", "peak params", "final params", "head params", "steps per phase", "adapter compute"):
        table.add_column(name, justify="left" if name in ("method", "steps per phase") else "right")
    exempt = {label: plan["exemption"] for label, plan in plans.items() if plan["exemption"]}
    if exempt:
        table.add_column("exemption", overflow="fold")
    for label, plan in plans.items():
        steps = ", ".join(f"{p['name']} {p['steps']}" for p in plan["phases"])
        compute = f"{plan['relative_compute']:.2f}×" if plan["ranks"] else "–"
        params = [_count(plan[f"{n}_params"]) for n in ("peak", "final", "head")]
        table.add_row(label, *params, steps, compute, *([exempt.get(label, "")] if exempt else []))
    console.print(table)
    ranked = {label: plan["ranks"] for label, plan in plans.items() if plan["ranks"]}
    if ranked:
        ranks = Table(title="Final rank per site", title_justify="left")
        ranks.add_column("site", overflow="fold")
        for label in ranked:
            ranks.add_column(label, justify="right")
        for site in next(iter(ranked.values())):
            ranks.add_row(site, *[str(found[site]) for found in ranked.values()])
        console.print(ranks)
    decided = [label for label, plan in plans.items() if plan["decided_in_training"]]
    if decided:
        console.print(f"{', '.join(decided)}: the final allocation is decided in training; ranks shown are the first.")
    console.print("adapter compute: adapter multiply-adds of the run, relative to the final ranks in every step.")


def show_methods(methods: Sequence[Mapping[str, Any]]) -> None:
    """One row a method, what it was seen to do, where its documentation's statements come from, and its options."""
    console = _console()
    table = _folding("Methods", "method", "year", "source", "prunes", "signals", "what it does")
    seen = _folding(
        "Seen on a tiny model", "method", "decides", "changes", "start", "peak / final", "trained", "uses", "budget"
    )
    claims = _folding("Where statements come from", "method", "from", "statement")
    options = _folding("Options", "method", "option", "default", "the default is", "meaning")
    for m in methods:
        signals = ", ".join(m["signals"]) or "none"
        table.add_row(m["name"], str(m["year"] or "–"), m["source"], m["prunes"], signals, m["summary"])
        seen.add_row(m["name"], *_seen(m["observed"]))
        for claim in m["claims"]:
            claims.add_row(m["name"], ", ".join(claim["marks"]), claim["text"])
        for o in m["options"]:
            options.add_row(m["name"], o["name"], str(o["default"]), o["mark"], o["help"])
    for part in (table, seen, claims, options):
        console.print(part)
    console.print(
        "Seen: each method ran with its default options on a model of three random blocks, once per version. decides: "
        "when its plans changed something; start: whether starting ranks are even; trained: share of the final "
        "parameters; uses: penalties, multipliers and gates, and phases without training."
    )


def _folding(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _seen(observed: Mapping[str, Any]) -> list[str]:
    """The cells of what a method was seen to do."""
    if "error" in observed:
        return [f"not seen: {observed['error']}", *[""] * 6]
    uses = [word for word in ("penalty", "multipliers") if observed[word]]
    uses += [f"a gate per {observed['gate']}"] * (observed["gate"] != "none")
    uses += [phase for phase in observed["phases"] if phase.endswith("(no training)")]
    numbers = [f"{observed['peak']:.2f}×", f"{observed['trained']:.0%}"] if observed["peak"] else ["–", "–"]
    changes = ", ".join(observed["changes"]) or "nothing"
    return [observed["when"], changes, observed["start"], *numbers, ", ".join(uses) or "–", observed["budget"]]


def show_tasks(tasks: Sequence[TaskInfo]) -> None:
    """One row a task."""
    table = Table(title="Tasks", title_justify="left")
    for name in ("task", "kind", "train", "evaluation", "metrics", "reported split"):
        table.add_column(name, overflow="fold")
    for t in tasks:
        sizes = ", ".join(f"{n:,}" for n in t.evaluation_sizes.values())
        table.add_row(t.name, t.kind, f"{t.train_size:,}", sizes, ", ".join(t.metrics), t.evaluation_split)
    console = _console()
    console.print(table)
    console.print(
        "Your own files: peftprune compare --train-file F --test-file F --text COL[,COL2] --label COL "
        "[--kind generation]"
    )


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _score(mean: Any, std: Any) -> str:
    if _missing(mean):
        return "–"
    return f"{mean:.4f}" if _missing(std) else f"{mean:.4f} ± {std:.4f}"


def _shortened(text: str) -> str:
    """Enough of a message to know it by; the whole of it stands below the tables."""
    return text if len(text) <= _LONGEST_STATUS else f"{text[:_LONGEST_STATUS]}…"


def _signed(value: float) -> str:
    # Adding 0.0 takes the sign from what rounds to zero.
    return f"{round(value, 4) + 0.0:+.4f}"


def _count(value: Any) -> str:
    if _missing(value):
        return "–"
    return value if isinstance(value, str) else f"{value:,.0f}"


def _number(value: Any, factor: float, digits: int) -> str:
    return "–" if _missing(value) else f"{value * factor:,.{digits}f}"
