"""Prints studies, plans, methods and tasks as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from peftprune.analysis.frames import Frames
from peftprune.analysis.runs import in_cell
from peftprune.cli.terminal import console
from peftprune.report.findings import in_words, rounds_in_words
from peftprune.report.study_tables import main_table, study_table, tables_over_tasks
from peftprune.report.table import Table, column, count, number, plain, table
from peftprune.report.text import as_rich, overview_text
from peftprune.study.store import STOPPED
from peftprune.tasks import TaskInfo

_WIDE = 1000


def print_text(text: str) -> None:
    """Prints text, wrapped at the terminal's width."""
    console().print(text)


def print_table(shown: Table | None, width: int | None = None) -> None:
    """Prints a table and its note, without the second lines of its cells; None takes the terminal's width."""
    if shown is None:
        return
    wide = console(width)
    wide.print(as_rich(shown, wide.width))
    if shown.note:
        print_text(shown.note)


def show_comparison(frames: Frames, wide: bool = False) -> None:
    """Prints the overview; `wide` prints all columns of the main tables, differences and choices, however wide."""
    if not wide:
        print(overview_text(frames, console().width))
        return
    for cell in frames.study.cells():
        print_table(main_table(frames, cell), _WIDE)
        print_table(study_table("against", in_words(in_cell(frames.against, cell))), _WIDE)
        for said in rounds_in_words(frames, cell):
            print_text(said)
        print_table(study_table("choices", in_cell(frames.choices, cell)), _WIDE)
    for shown in tables_over_tasks(frames):
        print_table(shown, _WIDE)


def show_progress(states: Sequence[Mapping[str, Any]], minutes: float | None, frames: Frames | None) -> None:
    """Prints the overview so far and the arms that are at work or failed, on a cleared terminal."""
    console().clear()
    if frames is not None and any(row["state"] == "done" for row in states):
        show_comparison(frames)
    show_states([row for row in states if row["state"] in ("training", "failed")], minutes, states)


def show_states(
    states: Sequence[Mapping[str, Any]], minutes: float | None, counted: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Prints arms' states, the number of arms in each state, among `counted` if given, and the minutes left."""
    names = ("task", "budget", "method", "seed", "state")
    columns = [*map(plain, names), plain("step", "checkpoint at step"), plain("error")]
    found = [row["state"] for row in counted or states]
    order = ("done", "training", "interrupted", "failed", "waiting", *([STOPPED] if STOPPED in found else []))
    note = ", ".join(f"{found.count(state)} {state}" for state in order)
    if minutes is not None:
        note += f". About {minutes:.0f} minutes left" if minutes < 90 else f". About {minutes / 60:.1f} hours left"
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
    columns = [plain("method"), *map(count, ("peak_params", "final_params", "head_params"))]
    columns += [plain("steps", "steps per phase"), column("compute", "adapter compute", str)]
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


def show_dry_run(found: Mapping[str, Any]) -> None:
    """Prints one row per task, budget and method of a study that is not trained yet, and their sum."""
    rows, workers = found["arms"], found["workers"]
    if not rows:
        print_text("Every arm is finished: nothing is left to train.")
        return
    columns = [*map(plain, ("task", "budget", "method")), *map(count, ("arms", "steps"))]
    columns += [number("minutes", 1), number("memory", 0, "memory (MB)"), number("disk", 1, "disk (MB)")]
    print_table(table("Dry run: nothing was trained", rows, columns))
    arms, steps, minutes, disk = (sum(row[name] for row in rows) for name in ("arms", "steps", "minutes", "disk"))
    memory, files = (workers * max(row[name] for row in rows) for name in ("memory", "checkpoints"))
    stopped = sum(row["stopped"] for row in rows)
    halved = f" ({stopped:,} {STOPPED})" if stopped else ""
    print_text(
        f"{arms:,} arms{halved}, {steps:,} steps: about {minutes / workers:.1f} minutes with {workers} process(es), "
        f"{memory:,.0f} MB of memory and {disk + files:,.0f} MB of disk. Times are measured with plain LoRA and scale "
        "with planned FLOPs."
    )


def show_tasks(tasks: Sequence[TaskInfo]) -> None:
    """Prints one row per task."""
    rows = [vars(t) | {"evaluation": ", ".join(f"{n:,}" for n in t.evaluation_sizes.values())} for t in tasks]
    columns = [plain("name", "task"), plain("kind"), count("train_size", "train")]
    columns += [*map(plain, ("evaluation", "metrics")), plain("evaluation_split", "reported split")]
    own = "peftprune compare --train-file F --test-file F --text COL[,COL2] --label COL [--kind generation]"
    print_table(table("Tasks", rows, columns, note=f"Your own files: {own}"))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "one of " + ", ".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, int | float) else value or "none"
