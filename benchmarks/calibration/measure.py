"""Rates of right and wrong verdicts, cell by cell."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.calibration.simulate import METRICS
from peftprune.stats.paired import PairedDifference, from_resamples
from peftprune.stats.validation import Floats

MARGIN = 0.05
"""The margin, and the difference of a shifted pair."""
DEVIATIONS = {"none": 0.0, "small": 0.01, "large": 0.04}
"""Standard deviation of the true difference between seeds, in the metric."""
LEVEL = 0.05
COUNTS = ("covered_null", "covered_shifted", "false_different", "false_equivalent", "false_not_worse", "found", "held")


class Cell(NamedTuple):
    """One size and kind of study."""

    metric: str
    examples: int
    seeds: int
    deviation: str


def grid(metrics: Sequence[str], examples: Sequence[int], seeds: Sequence[int], *, full: bool = True) -> list[Cell]:
    """Returns all cells of these sizes; BLEU, which costs most, at 408 examples and up to 8 seeds.

    Without `full`, only accuracy has all numbers of examples, and the other metrics have 408.
    """
    cells = [Cell(*parts) for parts in itertools.product(metrics, examples, seeds, DEVIATIONS)]
    whole = set(metrics) - {"bleu"} if full else {"accuracy"}
    return [c for c in cells if (c.metric in whole or c.examples == 408) and (c.metric != "bleu" or c.seeds <= 8)]


def count(cell: Cell, repetitions: int, start: int = 0, resamples: int = 399) -> dict[str, int]:
    """Returns how often each of `COUNTS` happens in simulated studies of a cell; `start` numbers the first of them.

    A null pair has no difference, a shifted one that of the margin, which is neither equivalent nor "not worse" from
    the baseline's side. `found` counts shifted pairs called different, and `held` null pairs called equivalent.
    """
    found = dict.fromkeys(COUNTS, 0)
    for shifted in (False, True):
        shift = MARGIN if shifted else 0.0
        for one in _studies(cell, shift, repetitions, start, resamples):
            covered, different = one.low <= shift <= one.high, one.p <= LEVEL
            above, below = one.p_above(-MARGIN) <= LEVEL, one.p_below(MARGIN) <= LEVEL
            if shifted:
                found["covered_shifted"] += covered
                found["found"] += different
                found["false_equivalent"] += above and below
                found["false_not_worse"] += below
            else:
                found["covered_null"] += covered
                found["false_different"] += different
                found["held"] += above and below
    return found


def _studies(cell: Cell, shift: float, repetitions: int, start: int, resamples: int) -> Iterator[PairedDifference]:
    what = METRICS[cell.metric]
    entropy = zlib.crc32(repr((cell, shift, start)).encode())
    rng = np.random.default_rng(entropy)
    deviation = what.scale(DEVIATIONS[cell.deviation] / math.sqrt(2))
    quality = np.repeat([what.quality(what.base + s, deviation) for s in (shift, 0.0)], cell.seeds)
    # The same resamples serve all studies of a block, as in peftprune every comparison of a size draws the same.
    even = np.full(cell.examples, 1 / cell.examples)
    weights = rng.multinomial(cell.examples, even, size=resamples).astype(np.float32)
    for _ in range(repetitions):
        qualities = quality + deviation * rng.standard_normal(len(quality))
        features = what.sums.features(*what.draw(qualities, cell.examples, rng))
        models, kinds, n = features.shape
        sums = weights @ features.reshape(-1, n).T.astype(np.float32)
        resampled: Floats = what.sums.evaluate(sums.reshape(resamples, models, kinds).astype(float))
        yield from_resamples(what.sums.evaluate(features.sum(axis=-1)), resampled, n, rng)


def row(cell: Cell, counts: dict[str, int], repetitions: int) -> dict[str, Any]:
    """Returns a cell's rates, and what it misses: coverage from 93 % to 97 %, false verdicts up to 5 %.

    A miss is a rate that chance would not give in 999 of 1,000 runs at the limit. Coverage counts from 5 seeds, false
    verdicts from 3. Where coverage is above 97 %, the interval is too wide, which errs on the safe side.
    """
    from scipy.stats import binom

    covered = counts["covered_null"] + counts["covered_shifted"]
    rates = {"coverage": covered / (2 * repetitions), **{n: counts[n] / repetitions for n in COUNTS[2:]}}
    missed = []
    if cell.seeds >= 5:
        missed += ["coverage low"] * int(binom.cdf(covered, 2 * repetitions, 0.93) < 0.001)
        missed += ["coverage high"] * int(binom.sf(covered - 1, 2 * repetitions, 0.97) < 0.001)
    if cell.seeds >= 3:
        false = [n for n in COUNTS if n.startswith("false")]
        missed += [n.replace("_", " ") for n in false if binom.sf(counts[n] - 1, repetitions, LEVEL) < 0.001]
    return {**cell._asdict(), **rates, "misses": missed}
