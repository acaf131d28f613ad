"""Reports of a stored study: a self-contained HTML page, figures, tables and exported adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftprune.analysis.margins import Margin
    from peftprune.study.stored_study import StoredStudy


def write_report(
    study: StoredStudy, path: str | Path, baseline: str | None = None, margin: Margin | None = None
) -> Path:
    """Writes a study's report, one HTML file. The same stored results give the same bytes.

    Args:
        study: a stored study; the report lists failed and pending arms.
        path: the HTML file; its folder is created if missing.
        baseline: label of the method that the others are compared with; by default the first one.
        margin: a difference that does not matter; see `peftprune.analysis.margins`.

    Returns:
        The path.

    Raises:
        UsageError: the baseline is not in the study, the margin is out of range, or the file cannot be written.
    """
    from peftprune.files import write_output
    from peftprune.report.html.page import render

    write_output(Path(path), render(study, baseline, margin).encode())
    return Path(path)
