"""L1RA: every step of the gates of a real run and every reassignment, against slow twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import UsageError
from peftprune.methods.l1ra import round_robin
from peftprune.methods.registry import load
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.sites import SiteShape
from tests.helpers import make_arm
from tests.reference import l1ra as slow
from tests.test_methods import run_watched


def gates_of(sites: Any) -> dict[str, list[float]]:
    return {n: s.gate.double().tolist() for n, s in sites.items()}


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_a_run_follows_the_twin_step_by_step(architecture: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    arm = make_arm(
        # The run has half of the steps, so the penalty is twice 0.25.
        "l1ra(l1=0.25,full_steps=100,gate_lr=0.1,update_share=0.11)",
        tmp_path,
        tiny_models[architecture],
        budget="params=5000,steps=50" if architecture != "bart" else "params=9000,steps=50",
        target_modules="all-linear",
    )
    costs = {s.name: s.unit_cost for s in arm.plan.shapes}
    caps = {s.name: s.max_rank for s in arm.plan.shapes}
    params = arm.plan.budget.params
    kept: dict[str, Any] = {}
    expected: dict[str, list[float]] = {}
    events: list[int] = []

    def decide(view: Any) -> None:
        expected.clear()
        current = gates_of(view.sites)
        expected.update({n: slow.shrink(values, 0.05) for n, values in current.items()})
        kept["tensors"] = {n: (s.A.clone(), s.B.clone()) for n, s in view.sites.items()}

    def after(step: int) -> None:
        stay, added = {n: list(range(len(v))) for n, v in expected.items()}, dict.fromkeys(expected, 0)
        if step % 5 == 0 and step < 50:
            # The twin decides on what the run's own gates are, so that a rounding at the threshold cannot part them.
            stay, added = slow.reassign(expected, 1e-10, costs, caps, params)
            if any(len(stay[n]) < len(expected[n]) for n in stay):
                events.append(step)
                row = kept["trainer"].pruning.trace.rows[-1]
                assert row["step"] == step
                assert row["scores"] == pytest.approx({n: min(v) for n, v in expected.items()}, rel=1e-6, abs=1e-7)
                assert not kept["trainer"].optimizer.state, "the optimizer starts afresh"
        for name, site in kept["sites"].items():
            A, B = kept["tensors"][name]
            old = len(stay[name])
            values = [expected[name][k] for k in stay[name]] + [1.0] * added[name]
            assert site.gate.tolist() == pytest.approx(values, rel=1e-6, abs=1e-7), (step, name)
            assert torch.equal(site.A[:old], A[stay[name]])
            assert torch.equal(site.B[:, :old], B[:, stay[name]])
            assert not site.B[:, old:].any()
        left = params - sum(s.rank * costs[n] for n, s in kept["sites"].items())
        assert 0 <= left < min(costs[n] for n, s in kept["sites"].items() if s.rank < caps[n])

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept.update(sites=sites, trainer=trainer)

    _, sites, _ = run_watched(arm, {"built": built, "decide": decide}, after)
    assert len(events) >= 2
    assert len(set(sites.ranks.values())) > 2, "ranks have moved"


problems = st.lists(
    st.tuples(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=4), st.integers(4, 8)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(problems, st.integers(0, 30))
def test_reassignment_is_the_twins(problem: Any, over: int) -> None:
    shapes = {f"s{i}": SiteShape(f"s{i}", i, "x", 4, w) for i, (_, w) in enumerate(problem)}
    gates = {f"s{i}": values for i, (values, _) in enumerate(problem)}
    costs = {n: s.unit_cost for n, s in shapes.items()}
    params = sum(len(gates[n]) * costs[n] for n in gates) + over
    stay, added = slow.reassign(gates, 0.1, costs, {n: s.max_rank for n, s in shapes.items()}, params)
    view: Any = type("View", (), {})()
    view.rng = torch.Generator()
    view.sites = {
        n: type("Shown", (), {"shape": s, "A": torch.zeros(len(gates[n]), s.d_in)})() for n, s in shapes.items()
    }
    view.budget = ArmBudget(params, 1, 1, 1)
    tensors = {n: torch.tensor(v) for n, v in gates.items()}
    plan = load("l1ra")(threshold=0.1)._reassign(tensors, view)
    assert {n: list(plan.keep.get(n, range(len(v)))) for n, v in gates.items()} == stay
    assert {n: plan.grow.get(n, 0) for n in gates} == added
    for name, values in gates.items():
        assert plan.assign[name]["gate"].tolist() == [values[k] for k in stay[name]] + [1.0] * added[name]
    if plan.keep:
        left = params - sum((len(stay[n]) + added[n]) * costs[n] for n in gates)
        assert left >= 0
        assert all(left < costs[n] for n in gates if len(stay[n]) + added[n] < shapes[n].max_rank)
    else:
        assert not plan.reset_optimizer


def test_units_are_dealt_in_turn() -> None:
    shapes = {n: SiteShape(n, 0, "x", 4, 4) for n in "abc"}
    assert round_robin([["b", "a"], ["c"]], {"a": 1, "b": 1, "c": 3}, shapes, 8 * 8) == {"b": 2, "a": 1}
    assert round_robin([["b"], ["c"]], {"a": 1, "b": 3, "c": 3}, shapes, 8 * 9) == {"b": 1, "c": 1}


def test_gates_have_a_learning_rate_of_their_own(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("l1ra(full_steps=1,gate_lr=0.03)", tmp_path, tiny_bert)
    rates: list[set[float]] = []

    def observe(view: Any) -> None:
        gates = {id(s.live().gate) for s in view.sites.values()}
        groups = kept["trainer"].optimizer.param_groups
        rates.append({g["lr"] for g in groups if gates & {id(p) for p in g["params"]}})
        others.append({g["lr"] for g in groups} - rates[-1])

    kept: dict[str, Any] = {}
    others: list[set[float]] = []
    run_watched(arm, {"built": lambda model, sites, trainer: kept.update(trainer=trainer), "observe": observe})
    assert rates == [{0.03}] * 24, "the schedule leaves it alone"
    assert others[0] != others[12] != others[23]


def test_rows_start_from_a_normal_distribution_and_so_do_new_ones(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(
        "l1ra(l1=0.5,full_steps=1,gate_lr=0.1,update_share=0.21)", tmp_path, tiny_bert, budget="rank=5,steps=24"
    )
    kept: dict[str, Any] = {"new": []}

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept.update(sites=sites, first=torch.cat([s.A.flatten() for s in sites.values()]))

    def decide(view: Any) -> None:
        kept["before"] = {id(row): row for s in view.sites.values() for row in s.A.clone()}

    def after(step: int) -> None:
        known = torch.stack(list(kept["before"].values()))
        rows = [row for s in kept["sites"].values() for row in s.A if not (known == row).all(1).any()]
        kept["new"] += [row.clone() for row in rows]

    run_watched(arm, {"built": built, "decide": decide}, after)
    assert len(kept["new"]) >= 5
    for drawn in (kept["first"], torch.cat(kept["new"])):
        assert 0.8 / 5 < drawn.std() < 1.2 / 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1": -0.1}, r"^l1ra.l1: -0.1 is not at least 0. Give 0.005"),
        ({"gate_lr": 0.0}, r"^l1ra.gate_lr: 0.0 is not above 0. Give 0.02"),
        ({"update_share": 1.0}, r"^l1ra.update_share: 1.0 is not in \(0, 1\). Give 0.05"),
        ({"threshold": 0.0}, r"^l1ra.threshold: 0.0 is not in \(0, 1\). Give 1e-10"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("l1ra")(**options)


@pytest.mark.parametrize("method", ["l1ra", "sora"])
def test_a_budget_of_what_is_not_zero_is_refused_before_training(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"budget.count: 'nonzero' cannot be met by {method}, whose gates may end at"):
        make_arm(method, tmp_path, tiny_bert, budget="rank=4,steps=24,count=nonzero")
