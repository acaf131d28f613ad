"""How far two allocations agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from peftprune.study.stored_study import StoredStudy

COLUMNS = ["task", "budget", "method", "seed", "other_method", "other_seed", "ranks", "sites", "components"]


def stability(comparison: StoredStudy) -> pd.DataFrame:
    """Agreement of final allocations, one row a pair of finished arms that share the method or the seed.

    `ranks` is Σ min(r_i, r'_i) / Σ max(r_i, r'_i) over sites i; `sites` is the overlap (Jaccard) of the sets of sites
    that hold an adapter of their own, neither shared nor removed; `components` is the overlap of the initial rank
    components that are left, averaged over the sites at which both arms have cut some. Components of different seeds
    have no common identity, so `components` is given only for two methods with the same seed, and is NaN elsewhere.
    All three lie in [0, 1].

    Args:
        comparison: a stored study.
    """
    rows = []
    for cell in comparison.cells():
        arms = [
            (key, {s["site"]: s for s in result["allocation"]}, _components(folder.allocation()))
            for key, folder in cell.arms()
            if (result := folder.result()) is not None and result["allocation"]
        ]
        for (a, sites_a, kept_a), (b, sites_b, kept_b) in combinations(arms, 2):
            if a["method"] != b["method"] and a["seed"] != b["seed"]:
                continue
            rows.append(
                {
                    **a,
                    "other_method": b["method"],
                    "other_seed": b["seed"],
                    "ranks": rank_overlap(_ranks(sites_a), _ranks(sites_b)),
                    "sites": _jaccard(_own(sites_a), _own(sites_b)),
                    "components": component_overlap(kept_a, kept_b) if a["seed"] == b["seed"] else math.nan,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def rank_overlap(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """Σ min / Σ max of two allocations over all sites of either; 1 for equal ones, NaN where both are empty."""
    names = a.keys() | b.keys()
    most = sum(max(a.get(n, 0), b.get(n, 0)) for n in names)
    return sum(min(a.get(n, 0), b.get(n, 0)) for n in names) / most if most else math.nan


def component_overlap(a: Mapping[str, list[int]], b: Mapping[str, list[int]]) -> float:
    """Mean Jaccard overlap of the kept components over the sites that both name; NaN where there is none."""
    found = [_jaccard(set(a[n]), set(b[n])) for n in a if n in b]
    return sum(found) / len(found) if found else math.nan


def _components(trace: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Site to the initial components left at the end, where some were cut and some are left."""
    last: dict[str, dict[str, Any]] = {}
    for event in trace:
        last |= event["sites"]
    return {name: row["components"] for name, row in last.items() if row["components"]}


def _ranks(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    return {name: site["rank"] for name, site in sites.items()}


def _own(sites: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {name for name, site in sites.items() if site["rank"] and not site["shared_with"]}


def _jaccard(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b) if a | b else math.nan
