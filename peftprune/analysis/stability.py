"""Agreement of final allocations between seeds and methods."""

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from peftprune.study.stored_study import StoredStudy

COLUMNS = ["task", "budget", "method", "seed", "other_method", "other_seed", "ranks", "sites", "components"]


def stability(study: StoredStudy) -> pd.DataFrame:
    """Returns the agreement of final allocations, one row per pair of finished arms that share the method or the seed.

    `ranks` is Σ min(r_i, r'_i) / Σ max(r_i, r'_i) over sites i; `sites` is the Jaccard overlap of the sets of sites
    that hold an adapter of their own, neither shared nor removed; `components` is the Jaccard overlap of the remaining
    initial rank components, averaged over the sites at which both arms have cut some. Components of different seeds
    are not comparable, so `components` is NaN except for two methods with the same seed. All three lie in [0, 1].
    """
    rows = []
    for cell in study.cells():
        arms = [
            (key, {s["site"]: s for s in result["allocation"]}, _components(folder.allocation()))
            for key, folder, result in cell.finished()
            if result["allocation"]
        ]
        for (a, sites_a, kept_a), (b, sites_b, kept_b) in combinations(arms, 2):
            if a["method"] != b["method"] and a["seed"] != b["seed"]:
                continue
            ranks_a, ranks_b = ({n: s["rank"] for n, s in sites.items()} for sites in (sites_a, sites_b))
            found = {"ranks": rank_overlap(ranks_a, ranks_b), "sites": _jaccard(_own(sites_a), _own(sites_b))}
            found["components"] = component_overlap(kept_a, kept_b) if a["seed"] == b["seed"] else math.nan
            rows.append({**a, "other_method": b["method"], "other_seed": b["seed"], **found})
    return pd.DataFrame(rows, columns=COLUMNS)


def rank_overlap(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Returns Σ min / Σ max of two allocations over the sites of either; NaN where both are empty."""
    names = a.keys() | b.keys()
    most = sum(max(a.get(n, 0), b.get(n, 0)) for n in names)
    return sum(min(a.get(n, 0), b.get(n, 0)) for n in names) / most if most else math.nan


def component_overlap(a: Mapping[str, list[int]], b: Mapping[str, list[int]]) -> float:
    """Returns the mean Jaccard overlap of the kept components over the common sites; NaN where there are none."""
    found = [_jaccard(set(a[n]), set(b[n])) for n in a if n in b]
    return sum(found) / len(found) if found else math.nan


def _components(trace: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Maps sites to the initial components left at the end, where some were cut and some are left."""
    last: dict[str, dict[str, Any]] = {}
    for event in trace:
        last |= event["sites"]
    return {name: row["components"] for name, row in last.items() if row["components"]}


def _own(sites: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {name for name, site in sites.items() if site["rank"] and not site["shared_with"]}


def _jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b) if a | b else math.nan
