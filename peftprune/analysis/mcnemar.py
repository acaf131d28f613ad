"""One trained model against another, example by example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from peftprune import stats
from peftprune.analysis.predictions import measure, predictions

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy

COLUMNS = ["task", "budget", "method", "baseline", "seed", "only_method", "only_baseline", "p", "p_holm"]


def mcnemar(comparison: StoredStudy, baseline: str | None = None) -> pd.DataFrame:
    """McNemar's exact test for each task, budget, method and seed, on the primary evaluation split.

    `only_method` and `only_baseline` count the examples that just one of the two models gets right. Each test speaks of
    two trained models, so seeds are never pooled; p is corrected by Holm over the methods of a task, budget and seed.
    Regression has no right and wrong and gives no rows.

    Args:
        comparison: a stored study.
        baseline: label of the method that the others are compared with; None takes the first one.
    """
    baseline = comparison.baseline_label(baseline)
    rows = []
    for cell in comparison.cells():
        if cell.request["tasks"][0]["kind"] != "classification":
            continue
        stored, split = predictions(cell), measure(cell, cell.metrics[0]).split
        right = {
            (method, seed): (f["prediction"] == f["label"])[f["split"] == split].to_numpy()
            for method, seeds in stored.items()
            for seed, f in seeds.items()
        }
        for seed in cell.request["seeds"]:
            tested = [m for m in cell.methods if m != baseline and {(m, seed), (baseline, seed)} <= right.keys()]
            pairs = [(right[m, seed], right[baseline, seed]) for m in tested]
            found = [stats.mcnemar(ours, theirs) for ours, theirs in pairs]
            for method, (ours, theirs), p, corrected in zip(tested, pairs, found, stats.holm(found), strict=True):
                counts = {"only_method": int((ours & ~theirs).sum()), "only_baseline": int((theirs & ~ours).sum())}
                place = {"task": cell.tasks[0], "budget": cell.budgets[0], "method": method, "baseline": baseline}
                rows.append(place | {"seed": seed, **counts, "p": p, "p_holm": float(corrected)})
    return pd.DataFrame(rows, columns=COLUMNS)
