"""Rates of right and wrong verdicts of studies in rounds: three methods, all looks and Holm's procedure together."""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.calibration.measure import DEVIATIONS, LEVEL, MARGIN
from benchmarks.calibration.simulate import METRICS
from peftprune.analysis.differences import Tested, outcomes
from peftprune.analysis.looks import DECIDED
from peftprune.stats import Look, Verdict
from peftprune.stats.metric_sums import SumMetric
from peftprune.stats.paired import from_resamples
from peftprune.stats.validation import Floats

ROUNDS = (3, 5, 8, 12)
TRUTHS = {"equal": (0, 0, 0), "worse": (-1, -1, -1), "mixed": (1, -1, 0)}
"""True differences of three methods from the baseline, in margins."""
_EARLY, _LATE = 24_000, 5_000
"""Replicates of the second look and of later ones, enough for the level of the first of three methods."""
_FALSE = {
    -1: {Verdict.BETTER, Verdict.EQUIVALENT, Verdict.NOT_WORSE},
    0: {Verdict.BETTER, Verdict.WORSE},
    1: {Verdict.WORSE, Verdict.EQUIVALENT},
}


class Cell(NamedTuple):
    """One size and kind of study."""

    metric: str
    examples: int
    deviation: str
    truth: str


def grid() -> list[Cell]:
    """Returns all deviations and truths in accuracy; for other metrics and sizes one deviation and two truths."""
    cells = [Cell("accuracy", 408, deviation, truth) for deviation in DEVIATIONS for truth in TRUTHS]
    kinds = [("accuracy", 277), ("accuracy", 1000), ("matthews", 408), ("pearson", 408)]
    return cells + [Cell(*kind, "small", truth) for kind in kinds for truth in ("equal", "mixed")]


def count(cell: Cell, repetitions: int, start: int = 0) -> Counter[str]:
    """Returns in how many simulated studies a verdict is false, how many pairs are decided, and the arms that it took.

    `start` numbers the first study. `fixed` stands for the same studies with 12 seeds and one look.
    """
    what, seeds = METRICS[cell.metric], ROUNDS[-1]
    rng = np.random.default_rng(zlib.crc32(repr((cell, start)).encode()))
    deviation = what.scale(DEVIATIONS[cell.deviation] / np.sqrt(2))
    shifts = TRUTHS[cell.truth]
    quality = np.repeat([what.quality(what.base + s * MARGIN, deviation) for s in (0, *shifts)], seeds)
    even = np.full(cell.examples, 1 / cell.examples)
    weights = rng.multinomial(cell.examples, even, size=_EARLY).astype(np.float32)
    found: Counter[str] = Counter()
    for _ in range(repetitions):
        features = what.sums.features(
            *what.draw(quality + deviation * rng.standard_normal(len(quality)), cell.examples, rng)
        )
        # Methods × seeds × sums × examples.
        features = features.reshape(4, seeds, *features.shape[1:])
        early = _resampled(what.sums, weights, features[:, : ROUNDS[1]])
        study = _Study(
            what.sums.evaluate(features.sum(axis=-1)),
            {2: early, **dict.fromkeys((3, 4), _resampled(what.sums, weights[:_LATE], features))},
            cell.examples,
            rng,
        )
        verdicts, ends = _in_rounds(study)
        fixed = [outcome for _, _, outcome in outcomes([study.test(i, 4, Look()) for i in (1, 2, 3)], MARGIN, True)]
        found["false"] += any(v in _FALSE[s] for v, s in zip(verdicts, shifts, strict=True))
        found["false_fixed"] += any(v in _FALSE[s] for v, s in zip(fixed, shifts, strict=True))
        found["decided"] += sum(v in DECIDED for v in verdicts)
        found["decided_fixed"] += sum(v in DECIDED for v in fixed)
        found["arms"] += sum(ends) + max(ends)
    return found


def _resampled(metric: SumMetric, weights: Floats, features: Floats) -> Floats:
    *models, kinds, n = features.shape
    sums = weights @ features.reshape(-1, n).T.astype(np.float32)
    return metric.evaluate(sums.reshape(len(weights), *models, kinds).astype(float))


class _Study(NamedTuple):
    """Metrics, methods × seeds, the baseline first; and by look the same on resampled examples."""

    values: Floats
    resampled: dict[int, Floats]
    examples: int
    rng: np.random.Generator

    def test(self, method: int, number: int, look: Look) -> Tested:
        size, pair = ROUNDS[number - 1], [method, 0]
        resampled = self.resampled[number][:, pair, :size].reshape(-1, 2 * size)
        return Tested(
            from_resamples(self.values[pair, :size].ravel(), resampled, self.examples, self.rng), look, range(size)
        )


def _in_rounds(study: _Study) -> tuple[list[Verdict], list[int]]:
    """Returns verdicts and numbers of seeds of the three methods; see `peftprune.analysis.looks`."""
    fractions = tuple(n / ROUNDS[-1] for n in ROUNDS)
    tests: dict[int, Tested] = {}
    verdicts = [Verdict.UNDECIDED] * 3
    # No p of a bootstrap reaches the level of the first look.
    for number in (2, 3, 4):
        for method in (1, 2, 3):
            if verdicts[method - 1] not in DECIDED:
                tests[method] = study.test(method, number, Look(number, fractions))
        verdicts = [outcome for _, _, outcome in outcomes([*tests.values()], MARGIN, True)]
    return verdicts, [len(test.seeds) for test in tests.values()]


def row(cell: Cell, counts: Counter[str], repetitions: int) -> dict[str, Any]:
    """Returns a cell's rates and the share of arms trained; it misses where false verdicts beyond 5 % are no chance."""
    from scipy.stats import binom

    shares = {name: counts[name] / repetitions for name in ("false", "false_fixed")}
    shares |= {name: counts[name] / (3 * repetitions) for name in ("decided", "decided_fixed")}
    shares["arms"] = counts["arms"] / (4 * ROUNDS[-1] * repetitions)
    missed = [name for name in ("false", "false_fixed") if binom.sf(counts[name] - 1, repetitions, LEVEL) < 0.001]
    return {**cell._asdict(), **shares, "misses": missed}
