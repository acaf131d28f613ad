"""SoRA: every proximal step of a real run and the final cut, against slow twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import UsageError
from peftprune.methods.registry import load
from peftprune.scoring.threshold import soft_threshold
from tests.helpers import make_arm
from tests.reference import sora as slow
from tests.test_methods import run_watched


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), max_size=6), st.floats(0, 1, width=32))
def test_soft_threshold(values: list[float], t: float) -> None:
    found = soft_threshold(torch.tensor(values, dtype=torch.float64), t)
    assert found.tolist() == pytest.approx(slow.soft(values, t))


def gates_of(sites: Any) -> dict[str, list[float]]:
    return {n: s.gate.double().tolist() for n, s in sites.items() if s.rank}


@pytest.mark.parametrize("update", ["optimizer", "sgd"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_run_follows_the_twin_step_by_step(
    update: str, architecture: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    threshold = 0.02
    arm = make_arm(
        f"sora(initial_rank=8,threshold={threshold / 2},update={update!r},gate_lr=0.25,script_steps=100,cut_share=1.0)",
        tmp_path,
        tiny_models[architecture],
        budget="rank=3,steps=50",
        target_modules="all-linear",
    )
    kept: dict[str, Any] = {}
    expected: dict[str, list[float]] = {}
    steps = []
    history: list[dict[str, list[float]]] = []

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept["sites"] = sites

    def observe(view: Any) -> None:
        kept["before"] = gates_of(view.sites)

    def decide(view: Any) -> None:
        current = gates_of(view.sites)
        if update == "sgd":
            assert current == kept["before"], "the optimizer leaves the gates alone"
        for name, site in view.sites.items():
            stepped = current[name]
            if update == "sgd":
                stepped = slow.gradient_step(stepped, site.grad_gate.double().tolist(), 0.5)
            expected[name] = slow.proximal(stepped, threshold)
        history.append(dict(expected))

    def end_phase(view: Any) -> None:
        kept["tensors"] = {n: (s.A.clone(), s.B.clone()) for n, s in view.sites.items()}
        assert_gates(gates_of(view.sites))

    def assert_gates(found: dict[str, list[float]]) -> None:
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-6, abs=1e-7)
            assert [g == 0 for g in found[name]] == [g == 0 for g in values]

    def after(step: int) -> None:
        steps.append(step)
        if step < 50:
            assert_gates(gates_of(kept["sites"]))

    watching = {"built": built, "observe": observe, "decide": decide, "end_phase": end_phase}
    _, sites, trainer = run_watched(arm, watching, after)
    assert steps == list(range(1, 51))
    size = {n: [abs(g) for g in values] for n, values in expected.items()}
    chosen = slow.kept(history, {s.name: s.unit_cost for s in arm.plan.shapes}, arm.plan.budget.params)
    assert any(g == 0 for values in expected.values() for g in values)
    row = trainer.pruning.trace.rows[-1]
    assert len(trainer.pruning.trace.rows) == 2, "steps that only move gates leave no rows"
    for name, site in sites.items():
        assert row["scores"][name] == pytest.approx(sum(size[name]), rel=1e-6)
        assert site.rank == len(chosen[name])
        if site.rank:
            A, B = kept["tensors"][name]
            assert torch.equal(site.A, A[chosen[name]])
            assert torch.equal(site.B, B[:, chosen[name]])
            assert site.gate.tolist() == pytest.approx([expected[name][k] for k in chosen[name]], rel=1e-6, abs=1e-7)


def test_gates_start_normal_and_differ_between_sites_and_seeds(tiny_bert: Path, tmp_path: Path) -> None:
    def start(seed: int, rank: int) -> dict[str, Any]:
        _, sites, _ = make_arm(f"sora(initial_rank={rank})", tmp_path, tiny_bert, seed=seed).build()
        return {n: s.gate for n, s in sites.items()}

    first, again, wide, other = start(0, 16), start(0, 16), start(0, 32), start(1, 16)
    drawn = torch.cat(list(wide.values()))
    assert abs(drawn.mean()) < 0.3
    assert 0.8 < drawn.std() < 1.2
    assert len({g[0].item() for g in wide.values()}) == len(wide)
    for name, gate in first.items():
        assert torch.equal(gate, again[name])
        assert torch.equal(gate, wide[name][:16]), "the draw does not depend on the rank"
        assert not torch.equal(gate, other[name])


def test_an_early_cut_is_followed_by_training_without_shrinking(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(
        "sora(threshold=0.05,cut_share=0.5,gate_init='ones',update='sgd',script_steps=1)", tmp_path, tiny_bert
    )
    kept: dict[str, Any] = {}
    seen: dict[int, Any] = {}

    def decide(view: Any) -> None:
        seen[view.step] = {n: (s.gate - 0.1 * s.grad_gate).tolist() for n, s in view.sites.items() if s.rank}

    def after(step: int) -> None:
        if step > 12:
            for name, expected in seen[step].items():
                assert kept["sites"][name].gate.tolist() == pytest.approx(expected)

    run_watched(arm, {"built": lambda model, sites, trainer: kept.update(sites=sites), "decide": decide}, after)
    assert sum(map(len, seen[13].values())) == 4 * 4
    assert sum(map(len, seen[12].values())) == 4 * 16


def test_the_penalty_is_the_gates_mean_magnitude_until_the_cut(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("sora(penalty=10.0,cut_share=0.5,update='sgd')", tmp_path, tiny_bert, max_grad_norm=0.0)
    seen: dict[int, tuple[float, float]] = {}

    def penalty_of(view: Any) -> Any:
        gates = {n: s.live().gate for n, s in view.sites.items() if s.rank}
        tensor = arm.plan.method.penalty({n: s.live() for n, s in view.sites.items() if s.rank})  # type: ignore[union-attr]
        return tensor, slow.penalty({n: g.double().tolist() for n, g in gates.items()}, 10.0)

    def observe(view: Any) -> None:
        found, expected = penalty_of(view)
        seen[view.step] = (-1.0 if found is None else found.item(), expected)
        if view.step == 1:
            # B is zero at first, so the gates' gradient is that of the penalty.
            count = sum(s.rank for s in view.sites.values())
            for site in view.sites.values():
                assert site.grad_gate.tolist() == pytest.approx((10.0 / count * site.gate.sign()).tolist(), rel=1e-5)

    run_watched(arm, {"built": lambda *parts: None, "observe": observe})
    for step, (found, expected) in seen.items():
        assert found == (pytest.approx(expected, rel=1e-5) if step <= 12 else -1.0)


def test_short_runs_scale_the_threshold_and_the_gates_learning_rate(tiny_bert: Path, tmp_path: Path) -> None:
    def gate_rate(spec: str) -> float:
        _, _, trainer = make_arm(spec, tmp_path, tiny_bert, warmup_ratio=0.0).build()
        gates = [g for g in trainer.create_optimizer().param_groups if len(g["params"]) == 4 and not g["weight_decay"]]
        return gates[0]["lr"] / 5e-3

    assert gate_rate("sora(script_steps=240)") == pytest.approx(10)
    assert gate_rate("sora(script_steps=12)") == 1
    assert gate_rate("sora") == pytest.approx(14_380 / 24)


def test_only_zeros_go_under_the_papers_budget(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("sora(threshold=0.02,script_steps=1)", tmp_path, tiny_bert, budget="paper", epochs=6)
    last: dict[str, Any] = {}
    watching = {
        "built": lambda model, sites, trainer: last.update(sites=sites),
        "end_phase": lambda view: last.update(gates=gates_of(view.sites), step=view.step),
    }
    _, sites, _ = run_watched(arm, watching)
    assert last["step"] == 54, "the cut is at the end"
    assert {len(g) for g in last["gates"].values()} == {8}, "the script's rank"
    assert sites.ranks == {n: sum(g != 0 for g in values) for n, values in last["gates"].items()}
    assert 0 < sum(sites.ranks.values()) < 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1.0}, r"^sora.threshold: -1.0 is not at least 0. Give 0.0003"),
        ({"update": "adam"}, r"^sora.update: 'adam' is unknown. Use 'optimizer' or 'sgd'"),
        ({"penalty": -1.0}, r"^sora.penalty: -1.0 is not at least 0"),
        ({"script_steps": 0}, r"^sora.script_steps: 0 is not at least 1"),
        ({"gate_lr": 0.0}, r"^sora.gate_lr: 0.0 is not above 0"),
        ({"gate_init": "zeros"}, r"^sora.gate_init: 'zeros' is unknown"),
        ({"cut_share": 0.0}, r"^sora.cut_share: 0.0 is not in \(0, 1\]"),
        ({"initial_rank": 0}, r"^sora.initial_rank: 0 is not at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("sora")(**options)
