"""Simulates studies and writes how often their verdicts are right to `benchmarks/results/calibration.json`.

OMP_NUM_THREADS=1 python -m benchmarks.calibration              # the full grid
OMP_NUM_THREADS=1 python -m benchmarks.calibration --moderate   # half of it: one number of examples for most metrics

OMP_NUM_THREADS=1 python -m benchmarks.calibration --rounds     # studies in rounds, to calibration-rounds.json

The stored files come from the full grid, and from --rounds --repetitions 200.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.calibration import rounds
from benchmarks.calibration.measure import DEVIATIONS, MARGIN, count, grid, row
from benchmarks.calibration.simulate import METRICS
from peftprune.files import write_json

RESULTS = Path(__file__).parent.parent / "results"
EXAMPLES, SEEDS = (277, 408, 1000), (2, 3, 5, 8, 12)
_BLOCK = 20
"""Studies of a cell in one round over all cells; the file is written after each round."""


def main(
    out: Path,
    repetitions: int,
    cells: Sequence[Any],
    minutes: float,
    count: Callable[[Any, int, int], Mapping[str, int]],
    row: Callable[[Any, Any, int], dict[str, Any]],
    about: Mapping[str, Any],
) -> None:
    """Measures all cells in rounds and writes the file after each; begins no round after `minutes`."""
    totals: dict[Any, Counter[str]] = {cell: Counter() for cell in cells}
    begun = time.monotonic()
    for start in range(0, repetitions, _BLOCK):
        if time.monotonic() - begun > 60 * minutes:
            break
        size = min(_BLOCK, repetitions - start)
        for cell, total in totals.items():
            total.update(count(cell, size, start))
        write_json(
            out,
            {
                **about,
                "repetitions": start + size,
                "margin": MARGIN,
                "deviations": DEVIATIONS,
                "cells": [row(cell, total, start + size) for cell, total in totals.items()],
            },
        )
        print(f"{start + size} of {repetitions} studies in each of {len(cells)} cells", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400, help="studies of each kind in a cell")
    parser.add_argument("--resamples", type=int, default=399, help="replicates of each bootstrap")
    parser.add_argument("--moderate", action="store_true", help="about half of the cells")
    parser.add_argument("--rounds", action="store_true", help="studies in rounds of seeds")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no round after this time")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.rounds:
        out = given.out or RESULTS / "calibration-rounds.json"
        main(out, given.repetitions, rounds.grid(), given.minutes, rounds.count, rounds.row, {"rounds": rounds.ROUNDS})
    else:
        cells = grid(list(METRICS), EXAMPLES, SEEDS, full=not given.moderate)
        about = {"resamples": given.resamples}
        counted = partial(count, resamples=given.resamples)
        main(given.out or RESULTS / "calibration.json", given.repetitions, cells, given.minutes, counted, row, about)
