"""Copies the results of a stored study into one JSON file for `benchmarks/results/`.

    python benchmarks/collect.py runs/benchmark/rte benchmarks/results/rte.json

Wall-clock times are left out: they are comparable only when measured side by side.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

from peftprune import Comparison
from peftprune.analysis.frames import Frames
from peftprune.report.findings import rounds_in_words

CLOCK = ["seconds"]
KEPT = (
    "methods",
    "tasks",
    "budgets",
    "seeds",
    "target_modules",
    "settings",
    "dtype",
    "threads",
    "versions",
    "hardware",
)
PLACES = ["source", "files"]  # of a task's data; they differ between machines


def collect(study: Path) -> dict[str, object]:
    """Returns the study's request, one record per arm, and the comparisons of the arms."""
    result = Comparison.load(study)
    runs = result.runs().drop(columns=CLOCK)
    trials = result.tuning().drop(columns=CLOCK)
    request = {name: result.request[name] for name in KEPT}
    request["tasks"] = [{k: v for k, v in task.items() if k not in PLACES} for task in request["tasks"]]
    frames = Frames(result)
    said = [line for cell in result.cells() for line in rounds_in_words(frames, cell)]
    found = {
        "model": Path(result.request["model"]).name,
        **request,
        "runs": _records(runs),
        "against": _records(result.against()),
        "mcnemar": _records(result.mcnemar()),
        "pooled": _records(result.pooled()),
        "average_ranks": _records(result.average_ranks()),
    }
    found |= {"rounds": said} if said else {}
    return found | ({} if trials.empty else {"trials": _records(trials), "chosen": result.request["tuning"]["chosen"]})


def _records(frame: pd.DataFrame) -> list[dict[str, object]]:
    return json.loads(frame.to_json(orient="records", double_precision=15))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    Path(sys.argv[2]).write_text(json.dumps(collect(Path(sys.argv[1])), indent=1) + "\n")
