"""Paired differences of every method to a baseline, on the same seeds and examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from peftprune import stats
from peftprune.analysis.predictions import Measure, Predictions, measure, predictions, sample
from peftprune.analysis.runs import in_cell
from peftprune.stats import Look, PairedDifference, Verdict
from peftprune.stats.metrics import METRICS
from peftprune.study.stored_study import StoredStudy

COLUMNS = [
    *("task", "budget", "method", "baseline", "metric", "seeds", "difference", "low", "high", "p", "p_holm"),
    *("low_holm", "high_holm", "effect_size", "probability", "detectable", "seeds_needed", "verdict"),
]
MARGIN = ["margin", "p_not_worse", "p_equivalent"]
"""Further columns where a metric has a margin."""
LOOK = ["look", "looks"]
"""Further columns of a study in rounds."""
_RESAMPLES, _MOST_RESAMPLES = 10_000, 100_000
_SLOW_RESAMPLES = 500
"""For metrics that are recomputed on each resample."""


class Reached(NamedTuple):
    """The last `look` at a method, the number of `seeds` until then, its `test`, and whether that left it `open`."""

    look: Look = Look()
    seeds: float = math.inf
    test: Tested | None = None
    open: bool = True


def against(
    study: StoredStudy,
    runs: pd.DataFrame,
    baseline: str,
    margins: Mapping[str, float] | None = None,
    reached: Mapping[tuple[str, str, str], Reached] | None = None,
) -> pd.DataFrame:
    """Returns paired differences to the baseline, one row per task, budget, method and metric (see `COLUMNS`).

    The interval and p come from `stats.paired_bootstrap`, which resamples examples and seeds together; p is corrected
    by Holm over the methods of a task and budget, for each metric (`p_holm`). `low_holm` and `high_holm` are the ends
    of the interval at the level of `stats.adjust`, so it excludes 0 exactly where `p_holm` is at most 0.05; `low`
    and `high` are those of the 95 % interval of the row alone. `effect_size` is Hedges' g_z of the scores paired by
    seed, NaN below three seeds; `probability` is the probability that a run of the method scores above a run of the
    baseline; `detectable` is the smallest true difference that a study of this size detects with a power of 0.8, NaN
    where the two agree on every example; `seeds_needed` is the number of seeds that detects a difference of the
    observed size at the row's level with that power, infinite where only more examples can, NaN where the verdict needs
    none or one seed does not show it. With one seed, p, interval and detectable difference describe the two trained
    models, not the methods, and readers see no p. `verdict` is a `stats.Verdict`.

    Metrics with a margin also have `margin`, and the adjusted p of the verdicts that it allows, `p_not_worse` and
    `p_equivalent`: twice the one-sided ones, to be compared with 0.05. All tests of a metric's methods are one family.

    In a study in rounds, whose `looks` say what each method has `reached`, a row holds the pair's seeds until `look` of
    `looks`. Its adjusted p and interval then hold over all looks too; see `stats.sequential`.
    """
    rows = []
    for cell in study.cells():
        (task,), (budget,) = cell.tasks, cell.budgets
        stored, scores = predictions(cell), in_cell(runs, cell).set_index(["method", "seed"])
        at = {m: (reached or {}).get((task, budget, m), Reached()) for m in cell.methods}
        pairs = {m: min(at[m], at[baseline], key=lambda one: one.seeds) for m in cell.methods if m != baseline}
        for metric in cell.metrics:
            what = measure(cell, task, metric)
            known = baseline == (cell.request.get("rounds") or {}).get("baseline") and metric == cell.metrics[0]
            made = {m: (known and p.test) or tested(stored, m, baseline, what, p) for m, p in pairs.items()}
            tests = {m: test for m, test in made.items() if test}
            # A family that was fixed before the first look keeps the methods without a result.
            absent = len(pairs) - len(tests) if reached else 0
            found = outcomes([*tests.values()], (margins or {}).get(metric), what.higher_is_better, absent)
            for (method, test), (level, adjusted, outcome) in zip(tests.items(), found, strict=True):
                low, high = test.interval(level)
                open_ = outcome in (Verdict.NOT_DISTINGUISHABLE, Verdict.UNDECIDED)
                needed = stats.seeds_needed(test.found, alpha=level) if open_ else math.nan
                place = {"task": task, "budget": budget, "metric": metric, "low_holm": low, "high_holm": high}
                place |= {"look": test.look.number, "looks": len(test.look.fractions)}
                row = _row(method, baseline, test, scores[metric])
                rows.append(place | row | adjusted | {"seeds_needed": needed, "verdict": outcome})
    return pd.DataFrame(rows, columns=columns([*COLUMNS[:-1], *(LOOK if reached else ()), COLUMNS[-1]], margins))


def columns(names: list[str], margins: Mapping[str, float] | None) -> list[str]:
    """Returns the columns of a frame, with those of the margin before the verdict where there is any."""
    return [*names[:-1], *MARGIN, names[-1]] if margins else names


OneSided = tuple[Callable[[float], float], Callable[[float], float]]
"""Doubled one-sided p that the difference is above a value, and below it."""


def adjusted_rows(
    p: Sequence[float], margin: float | None, one_sided: Sequence[OneSided], higher_is_better: bool
) -> list[tuple[float, dict[str, float]]]:
    """Returns the level of each row's interval and its adjusted p values, by column; see `stats.adjust`."""
    if margin is None:
        found = stats.adjust(p)
        return [(float(level), {"p_holm": float(q)}) for level, q in zip(found.levels, found.p, strict=True)]
    found = stats.adjust(p, [above(-margin) for above, _ in one_sided], [below(margin) for _, below in one_sided])
    assert found.p_above is not None
    assert found.p_below is not None
    not_worse = found.p_above if higher_is_better else found.p_below
    equivalent = np.maximum(found.p_above, found.p_below)
    return [
        (float(level), {"p_holm": float(q), "margin": margin, "p_not_worse": float(n), "p_equivalent": float(e)})
        for level, q, n, e in zip(found.levels, found.p, not_worse, equivalent, strict=True)
    ]


class Tested(NamedTuple):
    """The paired bootstrap `found` for a pair at a `look`, on the `seeds` that it shares; p holds over all looks."""

    found: PairedDifference
    look: Look
    seeds: Sequence[int]

    @property
    def p(self) -> float:
        return self.look.overall(self.found.p)

    def p_above(self, value: float) -> float:
        return self.look.overall(self.found.p_above(value))

    def p_below(self, value: float) -> float:
        return self.look.overall(self.found.p_below(value))

    def interval(self, level: float) -> tuple[float, float]:
        return self.found.interval(self.look.nominal(level))


def tested(stored: Predictions, method: str, baseline: str, what: Measure, pair: Reached) -> Tested | None:
    """Returns the test of a pair; None if it shares no finished seed among those that it has reached."""
    seeds = sorted(seed for seed in stored[method].keys() & stored[baseline].keys() if seed < pair.seeds)
    if not seeds:
        return None
    a, b = ([sample(stored[label][seed], what)[0] for seed in seeds] for label in (method, baseline))
    _, references, metric = sample(stored[baseline][seeds[0]], what)
    # An early look needs more replicates to reach its level, that of the first step of Holm's procedure.
    wanted = 4 / (pair.look.nominal(0.05 / max(1, len(stored) - 1)) or 1)
    enough = math.ceil(wanted) if _RESAMPLES < wanted <= _MOST_RESAMPLES else _RESAMPLES
    resamples = _SLOW_RESAMPLES if METRICS[what.name].sums is None else enough
    found = stats.paired_bootstrap(a, b, references=references, metric=metric, resamples=resamples)
    return Tested(found, pair.look, seeds)


def outcomes(
    tests: Sequence[Tested], margin: float | None, higher_is_better: bool, absent: int = 0
) -> list[tuple[float, dict[str, float], Verdict]]:
    """Returns the level of each test's interval, its adjusted p values by column, and its verdict.

    `absent` methods count among the comparisons without a test.
    """
    p = [test.p for test in tests] + [1.0] * absent
    one_sided: list[OneSided] = [(test.p_above, test.p_below) for test in tests]
    one_sided += [(lambda _: 1.0, lambda _: 1.0)] * absent
    return [
        (
            level,
            adjusted,
            stats.verdict(
                test.found.difference,
                adjusted["p_holm"],
                len(test.seeds),
                smallest_p=test.look.overall(2 / (1 + len(test.found.replicates))),
                comparisons=len(p),
                higher_is_better=higher_is_better,
                p_not_worse=adjusted.get("p_not_worse"),
                p_equivalent=adjusted.get("p_equivalent"),
            ),
        )
        for test, (level, adjusted) in zip(tests, adjusted_rows(p, margin, one_sided, higher_is_better), strict=False)
    ]


def _row(method: str, baseline: str, test: Tested, scores: pd.Series[float]) -> dict[str, Any]:
    found = test.found
    ours, theirs = ([float(scores[label, seed]) for seed in test.seeds] for label in (method, baseline))
    return {
        "method": method,
        "baseline": baseline,
        "seeds": len(test.seeds),
        **{name: getattr(found, name) for name in ("difference", "low", "high", "p")},
        "effect_size": stats.effect_size(ours, theirs),
        "probability": stats.probability_of_improvement(ours, theirs),
        # Two methods that agree on every example show no noise to estimate.
        "detectable": stats.detectable_from(found) if found.example_std > 0 else math.nan,
    }
