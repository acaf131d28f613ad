"""A study's tables as text: for papers, for spreadsheets, for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from peftprune.analysis.differences import against
from peftprune.analysis.pooled import average_ranks, pooled
from peftprune.analysis.runs import method_rows
from peftprune.errors import UsageError
from peftprune.report.findings import cell_title
from peftprune.report.table import View
from peftprune.report.tables import paper_table
from peftprune.study.stored_study import StoredStudy

_DIFFERENCE = {
    "metric": "metric",
    "baseline": "baseline",
    "seeds": "paired_seeds",
    "difference": "difference",
    "low": "difference_low",
    "high": "difference_high",
    **{name: name for name in ("p", "p_holm", "effect_size", "probability", "detectable", "verdict")},
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


def table_text(comparison: StoredStudy, format: str, *, baseline: str | None = None) -> str:
    """A study's table as text.

    "markdown" and "latex" (for the package booktabs) give one table a task and budget, with its title, rounded for the
    eye. "csv" gives `Comparison.table` at full precision, with the columns of `Comparison.against` for each task's
    primary metric, their interval as `difference_low` and `difference_high`. "json" gives the rows of table,
    differences, pooled and average_ranks at full precision, null where there is no value.

    Args:
        comparison: a stored study.
        format: "markdown", "latex", "csv" or "json".
        baseline: label of the method that the others are held against; by default the first one.

    Raises:
        UsageError: an unknown format, or a baseline that is not in the study.
    """
    if format not in _FORMATS:
        raise UsageError.of("format", format, "is unknown", f"Choose among {', '.join(_FORMATS)}")
    return _FORMATS[format](comparison, baseline)


def _markdown(comparison: StoredStudy, baseline: str | None) -> str:
    return "\n".join(map(_markdown_table, _views(comparison, baseline)))


def _markdown_table(view: View) -> str:
    rules = ["---:" if column.numeric else "---" for column in view.columns]
    rows = [[c.title for c in view.columns], rules, *([cell.text for cell in row.cells] for row in view.rows)]
    rows[0], rows[2:] = _escaped(rows[0]), [_escaped(row) for row in rows[2:]]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**{_markdown_text(view.caption)}**\n\n{lines}\n"


def _escaped(row: list[str]) -> list[str]:
    return [_markdown_text(text) for text in row]


def _markdown_text(text: str) -> str:
    for special in "\\|*_`<[":
        text = text.replace(special, f"\\{special}")
    return " ".join(text.split())


def _latex(comparison: StoredStudy, baseline: str | None) -> str:
    return "\n".join(map(_latex_table, _views(comparison, baseline)))


def _latex_table(view: View) -> str:
    def line(texts: list[str]) -> str:
        return " & ".join(map(_latex_text, texts)) + r" \\"

    body = [line([cell.text for cell in row.cells]) for row in view.rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex_text(view.caption)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in view.columns)}}}",
            r"\toprule",
            line([column.title for column in view.columns]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def _csv(comparison: StoredStudy, baseline: str | None) -> str:
    return _joined(comparison, baseline).to_csv(index=False, lineterminator="\n")


def _json(comparison: StoredStudy, baseline: str | None) -> str:
    frames = {
        "table": method_rows(comparison),
        "against": against(comparison, baseline),
        "pooled": pooled(comparison, baseline),
        "average_ranks": average_ranks(comparison),
    }
    rows = {
        name: [{str(k): _plain(v) for k, v in r.items()} for r in f.to_dict("records")] for name, f in frames.items()
    }
    return json.dumps(rows, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _views(comparison: StoredStudy, baseline: str | None) -> list[View]:
    frame = _joined(comparison, baseline)
    return [
        paper_table(
            frame[(frame["task"] == cell.tasks[0]) & (frame["budget"] == cell.budgets[0])],
            cell.metrics,
            cell_title(cell),
        )
        for cell in comparison.cells()
    ]


def _joined(comparison: StoredStudy, baseline: str | None) -> pd.DataFrame:
    """The table, with the differences in each task's primary metric beside it."""
    differences = against(comparison, baseline)
    primary = differences[differences["metric"] == differences["task"].map(comparison.primary)]
    keys = ["task", "budget", "method"]
    beside = primary[[*keys, *_DIFFERENCE]].rename(columns=_DIFFERENCE)
    return method_rows(comparison).merge(beside, on=keys, how="left", validate="one_to_one")


_FORMATS: dict[str, Callable[[StoredStudy, str | None], str]] = {
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "json": _json,
}
