"""Prints studies, plans, methods and tasks as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table as RichTable

from peftprune.analysis.frames import Frames
from peftprune.analysis.runs import in_cell
from peftprune.cli.terminal import console
from peftprune.report.findings import cell_title, in_words, rounds_in_words
from peftprune.report.study_tables import main_table, study_table, tables_over_tasks
from peftprune.report.table import Table, column, count, plain, table

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy
    from peftprune.tasks import TaskInfo

_LONGEST_STATUS = 60


def print_text(text: str) -> None:
    """Prints text, wrapped at the terminal's width."""
    console().print(text)


def print_table(shown: Table | None) -> None:
    """Prints a table, without its detail columns and the second lines of its cells, and its note."""
    if shown is None:
        return
    rich = RichTable(title=": ".join(filter(None, (shown.caption, shown.place))), title_justify="left")
    kept = [i for i, column in enumerate(shown.columns) if not column.detail]
    for i in kept:
        numeric = shown.columns[i].numeric
        rich.add_column(shown.columns[i].title, justify="right" if numeric else "left", overflow="fold")
    for row in shown.rows:
        rich.add_row(*(row.cells[i].text for i in kept))
    console().print(rich)
    if shown.note:
        print_text(shown.note)


def show_comparison(study: StoredStudy) -> None:
    """Prints, per task and budget, the main table and the differences; then the results over several tasks."""
    frames = Frames(study, whole=True)
    request = frames.study.request
    for cell in frames.study.cells():
        rows = in_cell(frames.table, cell)
        # The command prints whole messages below the tables.
        rows = rows.assign(status=rows["status"].map(_shortened))
        print_table(main_table(rows, cell.metrics, cell_title(cell), in_cell(frames.references, cell)))
        print_text(
            f"Reported on: {cell.request['tasks'][0]['evaluation_split']}. {len(request['seeds'])} seed(s), "
            f"{request['sites']} sites, {request['dtype']}, {request['threads']} thread(s)."
        )
        print_table(study_table("against", in_words(in_cell(frames.against, cell))))
        for said in rounds_in_words(frames, cell):
            print_text(said)
        print_table(study_table("choices", in_cell(frames.choices, cell)))
    if request.get("left_out"):
        print_text(request["left_out"])
    for shown in tables_over_tasks(frames):
        print_table(shown)


def show_states(states: Sequence[Mapping[str, Any]]) -> None:
    """Prints every arm's state, and the number of arms in each state."""
    names = ("task", "budget", "method", "seed", "state")
    columns = [*map(plain, names), plain("step", "checkpoint at step"), plain("error")]
    counts = {
        state: sum(row["state"] == state for row in states)
        for state in ("done", "training", "interrupted", "failed", "waiting")
    }
    note = ", ".join(f"{n} {state}" for state, n in counts.items())
    print_table(table("Arms", states, columns, note=note))


def show_plans(plans: Mapping[str, Mapping[str, Any]], model: str) -> None:
    """Prints one row per method, then the ranks per site."""
    rows = [
        {
            **plan,
            "method": label,
            "steps": ", ".join(f"{p['name']} {p['steps']}" for p in plan["phases"]),
            "compute": f"{plan['relative_compute']:.2f}×" if plan["ranks"] else None,
        }
        for label, plan in plans.items()
    ]
    columns = [
        plain("method"),
        *map(count, ("peak_params", "final_params", "head_params")),
        plain("steps", "steps per phase"),
        column("compute", "adapter compute", str),
    ]
    if any(plan["exemption"] for plan in plans.values()):
        columns.append(plain("exemption"))
    note = "adapter compute: the run's adapter multiply-adds, relative to the final ranks at every step."
    print_table(table(f"Plan for {model}", rows, columns, note=note))
    if rest := next(iter(plans.values()))["left_out"]:
        print_text(rest)
    released = [
        {**row, "method": label, "value": _value(row["value"])}
        for label, plan in plans.items()
        for row in plan.get("published", ())
    ]
    if released:
        print_table(table("Published settings", released, [*map(plain, ("method", "setting", "value", "source"))]))
    ranked = {label: plan["ranks"] for label, plan in plans.items() if plan["ranks"]}
    if ranked:
        sites = [
            {"site": site} | {label: ranks[site] for label, ranks in ranked.items()}
            for site in next(iter(ranked.values()))
        ]
        columns = [plain("site"), *(count(label, label) for label in ranked)]
        print_table(table("Final rank per site", sites, columns))
    if decided := [label for label, plan in plans.items() if plan["decided_in_training"]]:
        print_text(f"{', '.join(decided)}: training decides the final allocation; the ranks shown are the first.")


def show_tasks(tasks: Sequence[TaskInfo]) -> None:
    """Prints one row per task."""
    rows = [
        {
            "task": t.name,
            "kind": t.kind,
            "train": t.train_size,
            "evaluation": ", ".join(f"{n:,}" for n in t.evaluation_sizes.values()),
            "metrics": t.metrics,
            "split": t.evaluation_split,
        }
        for t in tasks
    ]
    names = ("evaluation", "metrics")
    columns = [plain("task"), plain("kind"), count("train"), *map(plain, names), plain("split", "reported split")]
    note = (
        "Your own files: peftprune compare --train-file F --test-file F --text COL[,COL2] --label COL "
        "[--kind generation]"
    )
    print_table(table("Tasks", rows, columns, note=note))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "one of " + ", ".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, int | float) else value or "none"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_STATUS else f"{text[:_LONGEST_STATUS]}…"
