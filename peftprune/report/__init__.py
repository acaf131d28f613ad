"""Reports of a stored study: a self-contained HTML page, figures, tables and exported adapters."""

from pathlib import Path

from peftprune.analysis.margins import Margin
from peftprune.files import write_output
from peftprune.study.stored_study import StoredStudy


def write_report(
    study: StoredStudy, path: str | Path, baseline: str | None = None, margin: Margin | None = None
) -> Path:
    """Writes a study's report, one HTML file, and returns its path. The same stored results give the same bytes.

    It lists failed and pending arms; a missing folder is created. `baseline` and `margin` are as in
    `Comparison.against`. Raises UsageError where one of them does not fit, or the file cannot be written.
    """
    from peftprune.report.html.page import render

    write_output(Path(path), render(study, baseline, margin).encode())
    return Path(path)
