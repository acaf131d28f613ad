"""The leaderboard: one page with the methods of several audited studies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peftprune.analysis.audit import audit
from peftprune.analysis.frames import Frames
from peftprune.errors import PeftPruneError, UsageError
from peftprune.files import write_output
from peftprune.report.html.page import fill
from peftprune.report.study_tables import standings
from peftprune.report.table import Column, Part, count, difference, missing, plain, score, table
from peftprune.study.packed import readable, studies_in
from peftprune.study.stored_study import StoredStudy

_PACKAGES = ("peftprune", "peft", "transformers", "torch")
_NOTE = (
    "Score: mean ± standard deviation over seeds of the task’s primary metric, its 95 % interval below. Difference: "
    "to the baseline of the same study, task and budget, with its interval corrected over methods (Holm). Parameters: "
    "the adapter’s after training. A dash: nothing was tuned, or there is no value."
)


def write_leaderboard(studies: Sequence[Path], out: Path) -> tuple[Path, dict[str, str]]:
    """Writes `index.html` into a folder; returns its path, and why studies were refused, by name.

    `studies` are folders of studies, packed or not, or of several. One that does not pass its audit, or cannot be
    read, is refused. Raises UsageError where none is left.
    """
    frames, refused = dict[str, Frames](), dict[str, str]()
    with TemporaryDirectory() as temporary:
        for number, path in enumerate(chain.from_iterable(map(studies_in, studies))):
            try:
                study = StoredStudy.load(readable(path, Path(temporary) / str(number)))
                problems = audit(study)
            except PeftPruneError as error:
                problems = [str(error)]
            if problems:
                refused[str(path)] = "; ".join(problems[:1] + [f"and {len(problems) - 1} more"] * (len(problems) > 1))
            else:
                frames[str(path)] = Frames(study, whole=True)
        if not frames:
            why = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
            raise UsageError(f"studies: none can be shown; peftprune audit STUDY lists all contradictions.\n{why}")
        page = render(frames)
    write_output(out / "index.html", page.encode())
    return out / "index.html", refused


def render(studies: Mapping[str, Frames]) -> str:
    """Returns the page of studies by name."""
    rows = [row for name, frames in studies.items() for row in _rows(name, frames)]
    shown = table("Methods", rows, _COLUMNS, frame="leaderboard", note=_NOTE)
    return fill("leaderboard", table=shown, studies=list(studies))


def _rows(name: str, frames: Frames) -> Iterator[dict[Any, Any]]:
    request = frames.study.request
    versions = ", ".join(f"{p} {v}" for p in _PACKAGES if (v := request["versions"].get(p)))
    about = {"study": name, "model": request["model"], "versions": versions}
    for cell in frames.study.cells():
        primary = {f"{cell.metrics[0]}_{part}": f"score_{part}" for part in ("mean", "std", "low", "high")}
        found = standings(frames, cell).rename(columns=primary)
        for row in found[found["standing"] != ""].to_dict("records"):
            beside = None if missing(row["difference"]) else f"to {frames.baseline}"
            yield row | about | {"metric": cell.metrics[0], "beside": beside, "setting": _setting(row)}


def _with_below(shown: Column, name: str) -> Column:
    """Adds the text in another column below each cell."""
    return replace(shown, cell=lambda row: replace(shown.cell(row), below=(Part(row.get(name) or ""),)))


def _setting(row: Mapping[Any, Any]) -> str | None:
    """Returns what tuning chose, if anything."""
    if missing(row.get("learning_rate")):
        return None
    return ", ".join(filter(None, [f"learning_rate={row['learning_rate']:g}", row["option"]]))


_COLUMNS = (
    _with_below(plain("method"), "exemption"),
    plain("task"),
    plain("budget"),
    plain("metric"),
    score("score", 3),
    count("seeds"),
    _with_below(difference("difference"), "beside"),
    plain("standing", "verdict"),
    count("final_params", "parameters"),
    plain("setting", "tuned setting"),
    _with_below(plain("study"), "model"),
    plain("versions"),
)
