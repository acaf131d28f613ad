"""WeightLoRA: every hard-thresholding step of a real run and the removal, against slow twins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import UsageError
from peftprune.methods.registry import load
from peftprune.scoring.threshold import hard_threshold
from tests.helpers import make_arm
from tests.reference import scoring as slow_scoring
from tests.reference import weightlora as slow
from tests.test_methods import run_watched


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=6), st.integers(0, 7))
def test_hard_threshold(values: list[int], k: int) -> None:
    found = hard_threshold(torch.tensor(values, dtype=torch.float64), k)
    kept = slow.largest({str(i): float(v) for i, v in enumerate(values)}, k)
    assert found.tolist() == [v if str(i) in kept else 0 for i, v in enumerate(values)]


def weights_of(sites: Any) -> dict[str, float]:
    return {n: float(s.gate) for n, s in sites.items() if s.rank}


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_a_run_follows_the_twin_step_by_step(architecture: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    arm = make_arm(
        "weightlora(kept=0.4,select_share=0.6,weight_lr=2.0)",
        tmp_path,
        tiny_models[architecture],
        budget="params=5000,steps=50" if architecture != "bart" else "params=9000,steps=50",
        target_modules="all-linear",
    )
    k = -(-len(arm.plan.shapes) * 4 // 10)
    kept: dict[str, Any] = {"came back": 0}
    expected: dict[str, float] = {}
    zero: set[str] = set()

    def observe(view: Any) -> None:
        kept["before"] = weights_of(view.sites)
        assert not expected or kept["before"] == pytest.approx(expected, rel=1e-6, abs=1e-7)

    def decide(view: Any) -> None:
        current = weights_of(view.sites)
        assert current == kept["before"], "the optimizer leaves the weights alone"
        gradients = {n: float(view.sites[n].grad_gate) for n in current}
        assert (view.step == 1) == (max(map(abs, gradients.values())) <= 1e-10)
        stepped = slow.step(current, gradients, 2.0, k)
        expected.clear()
        expected.update(stepped)
        assert sum(w != 0 for w in stepped.values()) == (len(stepped) if view.step == 1 else min(k, len(stepped)))
        kept["came back"] += sum(name in zero and w != 0 for name, w in stepped.items())
        zero.clear()
        zero.update(n for n, w in stepped.items() if w == 0)

    def end_phase(view: Any) -> None:
        assert weights_of(view.sites) == pytest.approx(expected, rel=1e-6, abs=1e-7)
        if view.phase.name == "select":
            kept["tensors"] = {n: (s.A.clone(), s.B.clone()) for n, s in view.sites.items()}
            kept["chosen"] = slow.largest(expected, k)
            kept["weights"] = dict(expected)
            for name in set(expected) - set(kept["chosen"]):
                del expected[name]

    def after(step: int) -> None:
        if step != 30:
            return
        final = arm.plan.budget.solve([s for s in arm.plan.shapes if s.name in kept["chosen"]])
        for name, site in kept["sites"].items():
            assert site.rank == final.get(name, 0)
            if not site.rank:
                continue
            A, B = kept["tensors"][name]
            old = min(len(A), site.rank)
            rows = slow_scoring.keep_top(
                slow_scoring.rank_magnitude(A.double().tolist(), B.double().tolist(), "outer"), old
            )
            assert torch.equal(site.A[:old], A[rows])
            assert torch.equal(site.B[:, :old], B[:, rows])
            assert not site.B[:, old:].any(), "what is grown changes no function"

    watching = {
        "built": lambda model, sites, trainer: kept.update(sites=sites),
        "observe": observe,
        "decide": decide,
        "end_phase": end_phase,
    }
    _, sites, trainer = run_watched(arm, watching, after)
    assert {n for n, r in sites.ranks.items() if r} == set(kept["chosen"])
    assert len(kept["chosen"]) == k
    (row,) = trainer.pruning.trace.rows[1:]
    assert row["step"] == 30
    assert row["scores"] == pytest.approx({n: abs(w) for n, w in kept["weights"].items()}, rel=1e-6, abs=1e-7)
    assert all(w not in (0.0, 1.0) for w in weights_of(sites).values()), "the weights left are trained on"


def test_all_sites_start_at_the_rank_of_the_kept(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("weightlora(kept=0.5)", tmp_path, tiny_bert, budget="rank=4,steps=24")
    assert set(arm.plan.spec.ranks.values()) == {8}
    published = make_arm("weightlora(kept=0.5)", tmp_path, tiny_bert, budget="paper", epochs=1)
    assert set(published.plan.spec.ranks.values()) == {8}
    _, sites, _ = run_watched(published, {"built": lambda *_: None})
    assert sorted(sites.ranks.values()) == [0, 0, 8, 8]


def test_a_share_that_is_whole_up_to_its_last_bit_is_whole() -> None:
    assert load("weightlora")(kept=0.1)._count(30) == 3
    assert load("weightlora")(kept=0.01)._count(30) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": 0.0}, r"^weightlora.kept: 0.0 is not in \(0, 1\]. Give 0.5"),
        ({"select_share": 1.5}, r"^weightlora.select_share: 1.5 is not in \(0, 1\]. Give 0.2"),
        ({"weight_lr": 0.0}, r"^weightlora.weight_lr: 0.0 is not above 0. Give 10"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("weightlora")(**options)
