"""A study as text: the overview that a terminal or notebook shows; its tables as Markdown, LaTeX, CSV and JSON."""

import json
import math
from collections.abc import Callable, Iterator
from html import escape
from io import StringIO
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from peftprune.analysis.differences import LOOK, MARGIN
from peftprune.analysis.frames import Frames
from peftprune.analysis.margins import Margin
from peftprune.analysis.runs import in_cell
from peftprune.errors import UsageError
from peftprune.report.findings import best, cell_title, in_words, rounds_in_words, undertuned_line
from peftprune.report.study_tables import notes, overview, paper_table, study_table, tables_over_tasks
from peftprune.report.table import Table, fitted
from peftprune.study.stored_study import StoredStudy

_DIFFERENCE = {
    **{n: n for n in ("metric", "baseline")},
    "seeds": "paired_seeds",
    "difference": "difference",
    **{n: f"difference_{n}" for n in ("low", "high", "low_holm", "high_holm")},
    **{n: n for n in ("p", "p_holm", "effect_size", "probability", "detectable", "seeds_needed", "verdict")},
}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{c: f"${c}$" for c in "<>|"},
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "’": "'",
}


def overview_parts(frames: Frames) -> Iterator[Table | str]:
    """Yields the tables and lines of the overview: per task and budget, then over tasks."""
    request = frames.study.request
    for cell in frames.study.cells():
        yield overview(frames, cell)
        split, seeds = cell.request["tasks"][0]["evaluation_split"], len(request["seeds"])
        run = f"{seeds} seed(s), {request['sites']} sites, {request['dtype']}, {request['threads']} thread(s)"
        yield f"Reported on: {split}. {run}."
        yield from notes(frames, cell)
        yield from rounds_in_words(frames, cell)
        if (chosen := study_table("choices", in_cell(frames.choices, cell))) is not None:
            yield chosen
        yield from undertuned_line(frames, cell)
        if said := best(frames, cell):
            yield said
    if request.get("left_out"):
        yield request["left_out"]
    yield from filter(None, tables_over_tasks(frames))


def overview_text(frames: Frames, width: int) -> str:
    """Returns the overview as plain text of a width in characters."""
    written = StringIO()
    # In a notebook rich would display the text instead of writing it.
    console = Console(width=width, file=written, markup=False, highlight=False, color_system=None, force_jupyter=False)
    for part in overview_parts(frames):
        console.print(*([part] if isinstance(part, str) else ["", as_rich(part, width)]), sep="\n")
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines()).strip()


def overview_html(frames: Frames) -> str:
    """Returns the overview as a fragment of HTML."""
    parts = overview_parts(frames)
    return "\n".join(f"<p>{escape(part)}</p>" if isinstance(part, str) else _html_table(part) for part in parts)


def _html_table(shown: Table) -> str:
    rows = [[cell.text for cell in row.cells] for row in shown.rows]
    frame = pd.DataFrame(rows, columns=[column.title for column in shown.columns])
    return f"<h4>{escape(shown.caption)}</h4>{frame.to_html(index=False, border=0)}"


def as_rich(shown: Table, width: int) -> RichTable:
    """Lays a table out for a terminal: the first line of each cell, and the detail columns for which there is room."""
    kept = fitted(shown, width)
    title = ": ".join(filter(None, (shown.caption, shown.place)))
    options: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    rich = RichTable(title=title, title_justify="left", **options)
    for column in kept.columns:
        rich.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for row in kept.rows:
        rich.add_row(*(cell.text for cell in row.cells))
    return rich


def table_text(study: StoredStudy, format: str, *, baseline: str | None = None, margin: Margin | None = None) -> str:
    """Returns a study's tables as text.

    "markdown" and "latex" (for the package booktabs) give one table per task and budget, with its title, rounded. "csv"
    gives `Comparison.table` at full precision, with the columns of `Comparison.against` for each task's primary metric,
    their interval as `difference_low` and `difference_high` (with `_holm`: as Holm's procedure corrects it). "json"
    gives the rows of table, references, differences, pooled and average_ranks at full precision, null where there is no
    value. `baseline` and `margin` are as in `Comparison.against`.

    Raises UsageError for an unknown format, a baseline that is not in the study, or a margin out of range.
    """
    if format not in _FORMATS:
        raise UsageError.of("format", format, "is unknown", f"Choose among {', '.join(_FORMATS)}")
    return _FORMATS[format](Frames(study, baseline, margin, whole=True))


def table_values(frames: Frames) -> dict[str, Any]:
    """Returns the rows of the tables as plain values, None where there is none."""
    found = {
        "table": frames.table,
        "references": frames.references,
        "against": in_words(frames.against),
        "pooled": in_words(frames.pooled),
        "average_ranks": frames.average_ranks,
    }
    return {
        name: [{str(k): _plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
        for name, frame in found.items()
    }


def _plain(value: Any) -> Any:
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _with_differences(frames: Frames) -> pd.DataFrame:
    """Returns the table, beside it the differences in each task's primary metric."""
    differences = in_words(frames.against)
    primary = differences[differences["metric"] == differences["task"].map(frames.study.primary)]
    keys = ["task", "budget", "method"]
    names = [*_DIFFERENCE, *(name for name in (*MARGIN, *LOOK) if name in primary.columns)]
    beside = primary[[*keys, *names]].rename(columns=_DIFFERENCE)
    return frames.table.merge(beside, on=keys, how="left", validate="one_to_one")


def _paper_tables(frames: Frames, write: Callable[[Table], str]) -> str:
    """Returns one table per task and budget."""
    whole, references = _with_differences(frames), frames.references
    return "\n".join(
        write(paper_table(in_cell(whole, cell), cell.metrics, cell_title(cell), in_cell(references, cell)))
        for cell in frames.study.cells()
    )


def _markdown_table(table: Table) -> str:
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    rows = [[column.title for column in table.columns], *([cell.text for cell in row.cells] for row in table.rows)]
    head, *body = [[_markdown_text(text) for text in row] for row in rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in (head, rules, *body))
    return f"**{_markdown_text(table.caption)}**\n\n{lines}\n"


def _markdown_text(text: str) -> str:
    for special in "\\|*_`<[":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def _latex_table(table: Table) -> str:
    def line(texts: list[str]) -> str:
        return " & ".join(map(_latex_text, texts)) + r" \\"

    lines = [
        r"\begin{table}",
        rf"\caption{{{_latex_text(table.caption)}}}",
        rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in table.columns)}}}",
        r"\toprule",
        line([column.title for column in table.columns]),
        r"\midrule",
        *(line([cell.text for cell in row.cells]) for row in table.rows),
        *(r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
    ]
    return "\n".join(lines)


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def _csv(frame: pd.DataFrame) -> str:
    return frame.map(_csv_cell).rename(columns=_csv_cell).to_csv(index=False, lineterminator="\n")


def _csv_cell(value: Any) -> Any:
    """Returns a text that a spreadsheet would compute as a formula with an apostrophe, as OWASP recommends."""
    if not isinstance(value, str):
        return value
    # The csv module leaves a lone carriage return unquoted, which begins another row for some readers.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\n")) else text
    return text


_FORMATS: dict[str, Callable[[Frames], str]] = {
    "markdown": lambda frames: _paper_tables(frames, _markdown_table),
    "latex": lambda frames: _paper_tables(frames, _latex_table),
    "csv": lambda frames: _csv(_with_differences(frames)),
    "json": lambda frames: json.dumps(table_values(frames), indent=1, allow_nan=False, ensure_ascii=False) + "\n",
}
