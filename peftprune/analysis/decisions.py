"""What the decisions of every arm changed, from its trace."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from peftprune.analysis.runs import KEY
from peftprune.errors import UsageError
from peftprune.methods.registry import load
from peftprune.study.store import ArmFolder
from peftprune.study.stored_study import StoredStudy

COLUMNS = [*KEY, "events", "removed", "added", "moved", "dropped", "tied", "distance", "rank_correlation", "effect"]
NO_EFFECT = "no decision took effect: this is plain LoRA"
SAME_ALLOCATION = "no decision changed the allocation: it is that of plain LoRA"


def decisions(study: StoredStudy) -> pd.DataFrame:
    """Returns what decisions changed, one row per finished arm.

    `events` counts those that changed a site; `removed` and `added` count rank components over all events, and `moved`
    those of both that one event exchanged; `dropped` and `tied` count the sites that end without an adapter or with a
    shared one. `distance`, from 0 to 1, is half the L1 distance between the sites' shares of the final parameters and
    those at one rank everywhere; tied sites divide theirs. It is NaN in studies stored without the sites' sizes.
    `rank_correlation` is Spearman's between the sites' scores at the first and the last scored event, NaN if there are
    fewer than two.

    `effect` is `NO_EFFECT` where a method that decides made no plan and started at one rank everywhere,
    `SAME_ALLOCATION` where its plans changed no site, as where adapters only start afresh, and otherwise empty.
    Baselines make no plans and count no events; an arm whose trace is damaged has no counts.
    """
    rows = []
    for key, folder, result in study.finished():
        try:
            trace = folder.allocation()
        except UsageError:
            # `Frames.trace` names the damaged file; scores must not depend on it.
            rows.append({**key, "effect": ""})
            continue
        row = {**key, **changes(trace), "distance": distance_from_uniform(result["allocation"])}
        row["rank_correlation"] = _rank_correlation([event["scores"] for event in trace if event["scores"]])
        ranks = [site["rank"] for event in trace[:1] for site in event["sites"].values()]
        # One rank everywhere, to rounding.
        even = bool(ranks) and max(ranks) - min(ranks) <= 1
        idle = even and not row["events"] and _decides(folder, result["method"])
        rows.append({**row, "effect": (SAME_ALLOCATION if trace[1:] else NO_EFFECT) if idle else ""})
    return pd.DataFrame(rows, columns=COLUMNS)


def with_effect(frame: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Returns a frame of methods with the `effect` that all their arms of the same task and budget agree on.

    The column is left out where it is empty. A frame without tasks gets the effect that all tasks agree on.
    """
    keys = [name for name in ("task", "budget", "method") if name in frame.columns]
    # The empty text is the least.
    effects = found.groupby(keys)["effect"].min()
    values = [effects.get(key, "") for key in frame[keys].itertuples(index=False, name=None)]
    return frame.assign(effect=values) if any(values) else frame


def distance_from_uniform(allocation: Sequence[Mapping[str, Any]]) -> float:
    """Returns the `distance` of `decisions`, from an arm's `allocation`."""
    if not allocation or any("unit_cost" not in site for site in allocation):
        return math.nan
    costs = [site["unit_cost"] for site in allocation]
    held = [s["rank"] * s["unit_cost"] / (1 + len(s["shared_with"])) for s in allocation]
    if not sum(held):
        return math.nan
    return sum(abs(h / sum(held) - c / sum(costs)) for h, c in zip(held, costs, strict=True)) / 2


def changes(trace: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the counts of `decisions`, from an arm's trace."""
    found = dict.fromkeys(("events", "removed", "added", "moved"), 0)
    state: dict[str, Any] = {}
    for i, event in enumerate(trace):
        if i and event["sites"]:
            pairs = [(_components(state[name]), _components(site)) for name, site in event["sites"].items()]
            lost, gained = sum(len(a - b) for a, b in pairs), sum(len(b - a) for a, b in pairs)
            values = {"events": 1, "removed": lost, "added": gained, "moved": min(lost, gained)}
            found = {name: found[name] + value for name, value in values.items()}
        state |= event["sites"]
    dropped = sum(not site["rank"] for site in state.values())
    return {**found, "dropped": dropped, "tied": sum(bool(site["shared_with"]) for site in state.values())}


def _components(site: Mapping[str, Any]) -> set[int]:
    return set(range(site["rank"]) if site["components"] is None else site["components"])


def _rank_correlation(scores: Sequence[Mapping[str, float]]) -> float:
    if len(scores) < 2:
        return math.nan
    first, last = scores[0], scores[-1]
    pairs = [(first[name], last[name]) for name in first if name in last]
    # Correlation needs two different values on either side.
    if any(len(set(side)) < 2 for side in zip(*pairs, strict=True)) or not pairs:
        return math.nan
    return float(spearmanr(pairs).statistic)


def _decides(folder: ArmFolder, method: str) -> bool:
    """Whether the method decides on anything; a user's own, which may not be at hand, is taken to."""
    try:
        return bool(folder.config().get("source") or load(method).decides)
    except UsageError:
        return False
