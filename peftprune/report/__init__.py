"""The report: one HTML file that holds everything a study found and how, and needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy


def write_report(comparison: StoredStudy, path: str | Path, baseline: str | None = None) -> Path:
    """Write a study's report. The same store gives the same bytes.

    Args:
        comparison: a stored study; arms that failed or are still to run are named as such.
        path: the HTML file; its folder is made where it is missing.
        baseline: label of the method that the others are held against; by default the first one.

    Returns:
        The path.

    Raises:
        UsageError: the baseline is not in the study, or the file cannot be written.
    """
    from peftprune.files import write_output
    from peftprune.report.html.page import render

    write_output(Path(path), render(comparison, baseline).encode())
    return Path(path)
