"""The trace: which components a site still holds, followed through every kind of plan."""

from __future__ import annotations

import random

import pytest
import torch

from peftprune.adapters.surgery import apply_plan
from peftprune.strategy.plan import PruningPlan
from peftprune.training.trace import Trace
from tests.test_surgery import BASE, Q0, Q1, UP
from tests.tiny import adapt


def mark(sites) -> None:
    """Write each row's number into A, so that a component can be told by its content."""
    for site in sites.values():
        site.A.copy_(torch.arange(float(site.rank))[:, None].expand_as(site.A))


def marks(site) -> list[int]:
    return [] if site.rank == 0 else [int(v) for v in site.A[:, 0].tolist()]


@pytest.mark.parametrize("seed", range(8))
def test_components_are_those_whose_rows_are_left(seed: int) -> None:
    draw = random.Random(seed)
    _, sites = adapt(BASE)
    mark(sites)
    trace = Trace()
    trace.begin(sites, "first")
    rng = torch.Generator().manual_seed(seed)
    grown = {name: site.rank for name, site in sites.items()}
    for step in range(1, 7):
        alive = [n for n, s in sites.items() if s.rank > 1]
        keep = {n: sorted(draw.sample(range(sites[n].rank), sites[n].rank - 1)) for n in alive if draw.random() < 0.5}
        groups = {n: s.shared_with()[n] for n, s in ((n, sites) for n in sites)}
        for name in list(keep):  # members of a group need the same entry
            for other in groups[name]:
                keep[other] = keep[name]
        plan = PruningPlan(keep=keep, reason=str(step))
        if step == 3:
            name = next(n for n, s in sites.items() if s.rank)
            plan = PruningPlan(grow={name: 1}, reason="grow")
        if plan.is_empty:
            continue
        changes = apply_plan(sites, plan, rng=rng)
        if step == 3:
            for member in [name, *groups[name]]:
                sites[member].A[-1] = float(grown[name])
                grown[member] = grown[name] + 1
        trace.record(sites, plan, changes, step, "first")
        state: dict[str, dict] = {}
        for row in trace.rows:
            state |= row["sites"]
        for n, site in sites.items():
            held = state[n]["components"]
            assert marks(site) == (list(range(grown[n])) if held is None else held)


def test_sites_that_start_afresh_share_or_are_dropped() -> None:
    _, sites = adapt(BASE)
    a, same, other = Q0, Q1, UP
    trace = Trace()
    trace.begin(sites, "probe")
    plan = PruningPlan(reinit={a: 3}, share=[[a, same]], drop=frozenset({other}), scores={a: 0.75}, reason="decided")
    changes = apply_plan(sites, plan, rng=torch.Generator().manual_seed(0))
    trace.record(sites, plan, changes, 5, "probe")
    row = trace.rows[-1]
    assert (row["step"], row["reason"], row["scores"]) == (5, "decided", {a: 0.75})
    assert row["sites"][a] == {"rank": 3, "density": None, "shared_with": [same], "components": None}
    assert row["sites"][same] == {"rank": 3, "density": None, "shared_with": [a], "components": None}
    assert row["sites"][other] == {"rank": 0, "density": None, "shared_with": [], "components": []}
    # A cut of a shared adapter is one of all its holders.
    cut = PruningPlan(keep={a: [0, 2]})
    trace.record(sites, cut, apply_plan(sites, cut), 6, "finetune")
    assert trace.rows[-1]["sites"][a]["components"] == trace.rows[-1]["sites"][same]["components"] == [0, 2]
    assert set(trace.rows[-1]["sites"]) == {a, same}
    grow = PruningPlan(grow={same: 2})
    trace.record(sites, grow, apply_plan(sites, grow, rng=torch.Generator().manual_seed(0)), 7, "finetune")
    assert [trace.rows[-1]["sites"][n]["components"] for n in (a, same)] == [[0, 2, 3, 4]] * 2


def test_a_restored_trace_goes_on_as_if_nothing_happened() -> None:
    _, sites = adapt(BASE)
    first = Trace()
    first.begin(sites, "train")
    name = next(n for n, s in sites.items() if s.rank > 2)
    plan = PruningPlan(keep={name: list(range(1, sites[name].rank))})
    first.record(sites, plan, apply_plan(sites, plan), 1, "train")
    second = Trace()
    second.load_state_dict(first.state_dict())
    again = PruningPlan(keep={name: list(range(1, sites[name].rank))})
    changes = apply_plan(sites, again)
    for trace in (first, second):
        trace.record(sites, again, changes, 2, "train")
    assert first.rows == second.rows
    assert first.rows[-1]["sites"][name]["components"][0] == 2
