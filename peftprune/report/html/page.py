"""The page: the values that the template shows, and the rendered HTML."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peftprune.analysis.frames import Frames
from peftprune.analysis.margins import Margin
from peftprune.analysis.published import published_for
from peftprune.analysis.runs import in_cell
from peftprune.report import findings
from peftprune.report.html.explorer import explorer
from peftprune.report.html.run_details import ledger_tables, method_entries, setup_tables
from peftprune.report.html.svg import drawings
from peftprune.report.study_tables import main_table, study_table, tables_over_tasks
from peftprune.study.command import command
from peftprune.study.paths import located
from peftprune.study.stored_study import StoredStudy

_TEMPLATES = Path(__file__).parent / "templates"


def render(study: StoredStudy, baseline: str | None = None, margin: Margin | None = None) -> str:
    return fill("report", **_context(Frames(study, baseline, margin, whole=True)))


def fill(name: str, **context: Any) -> str:
    """Returns the page of a template and its script, with the report's style."""
    layout: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, **layout)
    # Style and script need no escaping: they hold nothing of the study.
    files = {"css": "report.css", "js": f"{name}.js"}
    parts = {part: Markup((_TEMPLATES / file).read_text(encoding="utf-8")) for part, file in files.items()}
    return environment.get_template(f"{name}.html.j2").render(**context, **parts)


def _context(frames: Frames) -> dict[str, Any]:
    study = frames.study
    cells = list(study.cells())
    arms = zip(study.arms(), frames.runs["status"], strict=True)
    return {
        "study": study,
        "title": f"{findings.few(study.methods)} on {findings.listed(study.tasks)}",
        "question": findings.question(study, frames.baseline),
        "many": findings.NAMED,
        "answers": [*(findings.cell_answer(frames, cell) for cell in cells), *findings.pooled_answers(frames)],
        "cells": [_cell_tables(frames, cell) for cell in cells],
        "together": tables_over_tasks(frames),
        "frontiers": [study_table("frontier", rows) for _, rows in frames.frontier.groupby("task", sort=False)],
        "drawings": list(drawings(frames)),
        "explorer": explorer(frames),
        "ledger": ledger_tables(frames),
        "setup": setup_tables(study),
        "methods": method_entries(study),
        "failed": list(study.failures.items()),
        "pending": [study.name(key) for (key, _), status in arms if status == "pending"],
        "published": study_table("published", published_for(study.tasks)),
        "command": command(located(study.request, study.path)),
        "version": study.request["versions"].get("peftprune", ""),
    }


def _cell_tables(frames: Frames, cell: StoredStudy) -> dict[str, Any]:
    """Returns the tables of one task and budget; None where there is nothing to show."""
    title = findings.cell_title(cell)
    against = findings.best_first(findings.in_words(in_cell(frames.against, cell)), cell, "difference")
    pairs, others = in_cell(frames.stability, cell), ("mcnemar", "decisions", "choices")
    if len(cell.methods) > findings.NAMED:
        # Their number grows with the square of the methods.
        pairs = pairs[(pairs["method"] == pairs["other_method"]) | (pairs["method"] == frames.baseline)]
    return {
        "title": title,
        "main": main_table(frames, cell),
        "differences": {
            name: study_table("against", against[against["metric"] == name], f"{title}, {name}")
            for name in cell.metrics
        },
        "stability": study_table("stability", pairs, title),
        **{name: study_table(name, in_cell(getattr(frames, name), cell), title) for name in others},
    }
