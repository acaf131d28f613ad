"""Writes `docs/findings.md`, its figures and README's table from the packed results alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.tournament.claims import CLAIMS, CONTROLS, Question
from benchmarks.tournament.tasks import ON_GPU, PILOTED, TASKS, place
from peftprune import Comparison
from peftprune.analysis.frames import Frames
from peftprune.methods.without_lora import FullConfig
from peftprune.report.figures import draw, save
from peftprune.report.findings import in_words, rounds_in_words
from peftprune.study.packed import readable

ROOT = Path(__file__).parents[2]
FINDINGS = Path("docs/findings.md")
README = Path("README.md")
FIGURES = {
    "differences": "Difference to LoRA with its corrected interval; the band is the margin",
    "quality": "Score against parameters, without the controls",
    "rates": "Validation score by learning rate, without the controls",
    "ranks": "Final ranks of the methods that allocate them, mean over seeds",
    "decomposition": "The parts of a method's gain: its ranks, of which place is a part, and its start and training",
}
"""Kind of figure to its caption. A second budget's quality is drawn with the first's; the last needs `transplant`."""
CLEAR = 4
"""Smallest detectable differences that lie between LoRA and the head alone on a task that tells methods apart."""
ALLOCATORS = ("prilora", "lora-drop", "delete", "adalora", "increlora", "sora", "eva", "gora")
"""The methods whose ranks are drawn: those of the others are uniform, or taken from one of these."""
PROPOSED = ("lora", "lora-drop", *(claim.method for claim in CLAIMS), "eva", "gora", "squeeze", "head-only", "full")
"""The methods whose rates and quality are drawn: all but the controls."""
_FOOTNOTE = rf"""
\* Not under the budget of the others; `full` trains at {FullConfig().lr_scale:g} times the rate shown. Intervals are
each row's own; verdicts are corrected for all methods and looks (tests after rounds of seeds), so a row may be
undecided although its interval excludes zero.
"""
_MARKED = re.compile(r"(<!-- table: tournament -->\n).*?(<!-- end -->)", re.DOTALL)


def write(results: Path, *, check: bool = False, root: Path = ROOT) -> list[str]:
    """Writes the documents and returns those that changed; with `check` nothing is written, and figures are not drawn.

    Raises UsageError if a folder of `results` holds no packed study.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"signed": _signed, "interval": _interval}
    with TemporaryDirectory() as temporary:

        def opened(name: str) -> Comparison:
            return Comparison.load(readable(place(results, name), Path(temporary) / name))

        @cache
        def pilot(task: str) -> dict[str, Any]:
            return _pilot(task, opened(f"pilot-{task}"))

        studies = [_study(name, opened(name), pilot) for name in stored(results)]
        pairs = [(few, many) for few in studies for many in studies if few["name"].startswith(f"{many['name']}-")]
        template = environment.get_template("findings.md.j2")
        pilots = [pilot(name) for name in PILOTED]
        text = template.render(studies=studies, pairs=pairs, pilots=pilots, claims=CLAIMS, clear=CLEAR)
        readme = (root / README).read_text()
        first = studies[0]
        table = environment.get_template("table.md.j2").render(study=first) + f"{_FOOTNOTE}\n{first['advice']}\n"
        new = {FINDINGS: text, README: _MARKED.sub(lambda found: f"{found[1]}{table}{found[2]}", readme)}
        changed = [name for name, new_text in new.items() if not _same(root / name, new_text)]
        if not check:
            for name in changed:
                (root / name).write_text(new[name])
            for study in studies:
                for kind in study["figures"]:
                    path = root / "docs" / "figures" / f"{study['name']}-{kind}.png"
                    path.parent.mkdir(exist_ok=True)
                    names = {"ranks": ALLOCATORS, "rates": PROPOSED, "quality": PROPOSED}.get(kind)
                    save(draw(Frames(study["result"].between(*names)) if names else study["frames"], kind), path)
            for few, many in pairs:
                _joined(few["result"], many["result"]).plot("quality", root / "docs" / "figures" / f"{few['name']}.png")
    return [str(name) for name in changed]


def stored(results: Path) -> list[str]:
    """Returns the names of the studies that have packed results."""
    return [name for name in TASKS | ON_GPU if place(results, name).is_dir()]


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def _study(name: str, result: Comparison, pilot: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Returns what the templates say of a study whose seeds are all trained; `pilot` says it of a task's pilot."""
    request = result.request
    (task,) = request["tasks"]
    frames, metric = Frames(result, "lora"), result.primary[task["name"]]
    against = in_words(frames.against)
    rows = _rows(result, frames, against, metric)
    parts = frames.decomposition
    counts = [row["seeds"] for row in rows]
    return {
        "name": name,
        "result": result,
        "metric": metric,
        "margin": request["margin"],
        "request": request,
        "task": task,
        "validation": request["tuning"]["validation"][task["name"]],
        "rates": request["tuning"]["asked"]["learning_rate"],
        "rows": rows,
        "first": rows[0],
        "lora": next(row for row in rows if row["method"] == "lora"),
        "frames": frames,
        "pilot": pilot(task["name"]),
        "parts": _parts(parts[parts["metric"] == metric]),
        "claims": _answers(result, against, metric, CLAIMS),
        "controls": _answers(result, against, metric, CONTROLS),
        "trials": len(frames.trials),
        "arms": len(frames.runs),
        "failed": [row["method"] for row in rows if "failed" in (row["status"] or "")],
        "figures": {
            kind: text
            for kind, text in FIGURES.items()
            if (kind != "decomposition" or "transplant" in result.methods)
            and (kind != "quality" or name == task["name"])
        },
        "looks": [line for cell in result.cells() for line in rounds_in_words(frames, cell)],
        "seeds": f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else str(counts[0]),
        "advice": _advice(rows),
    }


def _advice(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns what a reader should take for the study's budget, from the verdicts alone."""
    inside = [row for row in rows if not row["exemption"] and row["against"]]
    by_verdict = {
        word: [f"`{row['method']}`" for row in inside if row["against"]["verdict"].startswith(word)]
        for word in ("better", "worse", "equivalent", "not worse")
    }
    if by_verdict["better"]:
        found = [f"Within the budget, better than LoRA: {', '.join(by_verdict['better'])}."]
    else:
        found = [
            "No method within the budget is shown to be better than LoRA. Choose LoRA, and tune its learning rate."
        ]
    if by_verdict["equivalent"]:
        found.append(f"As good as LoRA: {', '.join(by_verdict['equivalent'])}.")
    if by_verdict["not worse"]:
        found.append(f"Not worse than LoRA by more than the margin: {', '.join(by_verdict['not worse'])}.")
    if by_verdict["worse"]:
        found.append(f"Worse than LoRA: {', '.join(by_verdict['worse'])}.")
    return " ".join(found)


def _joined(few: Comparison, many: Comparison) -> Comparison:
    """Returns one study of the methods that two studies share, with the budgets of both."""
    parts = [study.between(*set(few.methods) & set(many.methods)) for study in (few, many)]
    folders = {
        arm["hash"]: folder
        for part in parts
        for arm, (_, folder) in zip(part.request["arms"], part.arms(), strict=True)
    }
    both = {name: [row for part in parts for row in part.request[name]] for name in ("budgets", "arms")}
    return Comparison(many.path, {**parts[1].request, **both}, lambda label, seed, key: folders[key])


def _pilot(task: str, pilot: Comparison) -> dict[str, Any]:
    """Returns what a task's pilot says: how far LoRA is from the head alone, and whether that is enough."""
    clear = pilot.against("lora").iloc[0]
    found = {name: clear[name] for name in ("metric", "detectable", "seeds")}
    times = -clear["difference"] / clear["detectable"]
    return found | {"task": task, "difference": -clear["difference"], "times": times, "tells": times >= CLEAR}


def _parts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the parts of every method's gain, one row per method."""
    return [
        {"method": method} | {row["part"]: row for row in _records(group)}
        for method, group in frame.groupby("method", sort=False)
    ]


def _rows(result: Comparison, frames: Frames, compared: pd.DataFrame, metric: str) -> list[dict[str, Any]]:
    """Returns one row per method, the best mean first."""
    against = {row["method"]: row for row in _records(compared) if row["metric"] == metric}
    chosen = {c["label"]: c for c in result.request["tuning"]["chosen"]}
    tuning = frames.trials.groupby("method")["flops"].sum()
    rows = []
    for row in _records(frames.table):
        method = row["method"]
        cost = {"final": row["flops"], "tuning": float(tuning[method])}
        names = {"mean": f"{metric}_mean", "std": f"{metric}_std"}
        rows.append(
            {name: row[column] for name, column in names.items()}
            | {
                name: row.get(name)
                for name in ("method", "seeds", "final_params", "peak_params", "exemption", "status")
            }
            | {"against": against.get(method), "chosen": chosen[method], "cost": cost}
        )
    return sorted(rows, key=lambda row: -(row["mean"] or 0))


def _answers(
    result: Comparison, against: pd.DataFrame, metric: str, questions: Sequence[Question]
) -> list[dict[str, Any]]:
    """Returns each question with its difference, interval and verdict, as far as the study has both methods.

    Those about LoRA are rows of the study's table; any other is a comparison of its own.
    """
    found = []
    for question in questions:
        if not {question.method, question.baseline} <= set(result.methods):
            continue
        frame = against
        if question.baseline != "lora":
            pair = result.between(question.method, question.baseline)
            frame = Comparison(pair.path, pair.request).against(question.baseline)
        row = _records(frame[(frame["metric"] == metric) & (frame["method"] == question.method)])[0]
        refuting = ("worse", "equivalent") if question.holds[0] == "better" else "worse"
        held, refuted = row["verdict"].startswith(question.holds), row["verdict"].startswith(refuting)
        answer = "holds" if held else "does not hold" if refuted else "open"
        found.append({"question": question, "row": row, "answer": answer})
    return found


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _signed(value: float) -> str:
    # Adding 0.0 removes the sign of a value that rounds to zero.
    return f"{round(value, 4) + 0.0:+.4f}".replace("-", "−")


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_signed(row['low'])} to {_signed(row['high'])}"
