import pandas as pd

from peftprune import stats
from peftprune.analysis.predictions import measure, predictions
from peftprune.study.stored_study import StoredStudy

COLUMNS = ["task", "budget", "method", "baseline", "seed", "only_method", "only_baseline", "p", "p_holm"]


def mcnemar(study: StoredStudy, baseline: str) -> pd.DataFrame:
    """Returns McNemar's exact test per task, budget, method and seed, on the first evaluation split.

    `only_method` and `only_baseline` count the examples that only one of the two models classifies correctly. Each test
    compares two trained models, so seeds are never pooled; p is corrected by Holm over the methods of a task, budget
    and seed. Only classification tasks have rows.
    """
    rows = []
    for cell in study.cells():
        if cell.request["tasks"][0]["kind"] != "classification":
            continue
        (task,), (budget,) = cell.tasks, cell.budgets
        stored, split = predictions(cell), measure(cell, task, cell.metrics[0]).split
        right = {
            (method, seed): (f["prediction"] == f["label"])[f["split"] == split].to_numpy()
            for method, seeds in stored.items()
            for seed, f in seeds.items()
        }
        for seed in cell.request["seeds"]:
            tested = [m for m in cell.methods if m != baseline and {(m, seed), (baseline, seed)} <= right.keys()]
            pairs = [(right[m, seed], right[baseline, seed]) for m in tested]
            found = [stats.mcnemar(ours, theirs) for ours, theirs in pairs]
            for method, (ours, theirs), p, p_holm in zip(tested, pairs, found, stats.holm(found), strict=True):
                counts = {"only_method": int((ours & ~theirs).sum()), "only_baseline": int((theirs & ~ours).sum())}
                place = {"task": task, "budget": budget, "method": method, "baseline": baseline}
                rows.append(place | {"seed": seed, **counts, "p": p, "p_holm": float(p_holm)})
    return pd.DataFrame(rows, columns=COLUMNS)
