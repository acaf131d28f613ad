"""Slow twin of `peftprune.analysis.tuning.expected_best`: every subset, one after another."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence


def expected_best(scores: Sequence[float]) -> list[float]:
    sizes = range(1, len(scores) + 1)
    return [statistics.fmean(max(drawn) for drawn in itertools.combinations(scores, k)) for k in sizes]
