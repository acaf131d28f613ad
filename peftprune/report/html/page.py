"""The page: everything the template shows, and the template's text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from peftprune.analysis.differences import against
from peftprune.analysis.frontier import frontier
from peftprune.analysis.mcnemar import mcnemar
from peftprune.analysis.pooled import average_ranks, pooled
from peftprune.analysis.published import published_for
from peftprune.analysis.runs import method_rows
from peftprune.analysis.stability import stability
from peftprune.report import findings as words
from peftprune.report import tables
from peftprune.report.findings import budget_in_words
from peftprune.report.html import run_details as record
from peftprune.report.html.explorer import explorer
from peftprune.report.html.fairness_rules import PAPER, RULES
from peftprune.report.html.svg import drawings
from peftprune.report.table import View
from peftprune.study.command import command
from peftprune.study.stored_study import StoredStudy

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class CellTables:
    """The tables of one task and budget; None where there is nothing to show."""

    title: str
    main: View
    differences: View | None
    in_words: tuple[str, ...]
    mcnemar: View | None
    stability: View | None


@dataclass(frozen=True)
class _Frames:
    """The frames of a study, each computed once."""

    table: pd.DataFrame
    against: pd.DataFrame
    mcnemar: pd.DataFrame
    stability: pd.DataFrame
    pooled: pd.DataFrame
    ranks: pd.DataFrame
    frontier: pd.DataFrame


def render(comparison: StoredStudy, baseline: str | None = None) -> str:
    """The report's HTML.

    Args:
        comparison: a stored study.
        baseline: label of the method that the others are held against; by default the first one.

    Raises:
        UsageError: the baseline is not in the study.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Style and script stand in the page as they are; neither holds anything of the study.
    parts = {name: Markup((_TEMPLATES / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(**_context(comparison, baseline), **parts)


def _context(comparison: StoredStudy, baseline: str | None) -> dict[str, Any]:
    frames = _frames(comparison, baseline)
    against = comparison.methods[0] if baseline is None else baseline
    cells = list(comparison.cells())
    answers = [words.cell_answer(cell, _of_cell(frames.against, cell), against) for cell in cells]
    published = published_for(comparison.tasks)
    return {
        "title": f"{words.listed(comparison.methods)} on {words.listed(comparison.tasks)}",
        "question": words.question(comparison, against),
        "answers": [*answers, *words.pooled_answers(comparison, frames.pooled, frames.ranks)],
        "cells": [_cell_tables(cell, frames) for cell in cells],
        "together": _together(comparison, frames),
        "frontiers": [tables.frontier_table(rows, str(task)) for task, rows in _groups(frames.frontier, "task")],
        "drawings": list(drawings(comparison, baseline)),
        "explorer": explorer(comparison),
        "ledger": record.ledger_views(comparison),
        "setup": record.setup_views(comparison),
        "methods": record.method_entries(comparison),
        "rules": RULES,
        "exception": PAPER if "paper" in comparison.budgets else "",
        "failed": record.failed_arms(comparison),
        "pending": record.pending_arms(comparison),
        "published": None if published.empty else tables.published_table(published),
        "command": command(comparison.request),
        "version": comparison.request["versions"].get("peftprune", ""),
    }


def _frames(comparison: StoredStudy, baseline: str | None) -> _Frames:
    return _Frames(
        table=method_rows(comparison),
        against=against(comparison, baseline),
        mcnemar=mcnemar(comparison, baseline),
        stability=stability(comparison),
        pooled=pooled(comparison, baseline),
        ranks=average_ranks(comparison),
        frontier=frontier(comparison),
    )


def _of_cell(frame: pd.DataFrame, cell: StoredStudy) -> pd.DataFrame:
    return frame[(frame["task"] == cell.tasks[0]) & (frame["budget"] == cell.budgets[0])]


def _groups(frame: pd.DataFrame, name: str) -> list[tuple[Any, pd.DataFrame]]:
    return list(frame.groupby(name, sort=False))


def _cell_tables(cell: StoredStudy, frames: _Frames) -> CellTables:
    title = words.cell_title(cell)
    differences, mcnemar, stability = (
        _of_cell(frame, cell) for frame in (frames.against, frames.mcnemar, frames.stability)
    )
    return CellTables(
        title=title,
        main=tables.main_table(_of_cell(frames.table, cell), cell.metrics, title),
        differences=None if differences.empty else tables.difference_table(differences, title),
        in_words=words.detectable(differences),
        mcnemar=None if mcnemar.empty else tables.mcnemar_table(mcnemar, title),
        stability=None if stability.empty else tables.stability_table(stability, title),
    )


def _together(comparison: StoredStudy, frames: _Frames) -> list[View]:
    """Tables over several tasks."""
    if len(comparison.tasks) < 2:
        return []
    pooled = [tables.pooled_table(rows, budget_in_words(str(b))) for b, rows in _groups(frames.pooled, "budget")]
    ranks = [tables.ranks_table(rows, budget_in_words(str(b))) for b, rows in _groups(frames.ranks, "budget")]
    return [*pooled, *ranks]
