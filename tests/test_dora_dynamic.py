"""DoRA with dynamic rank: agreement with a slow twin, the end of its penalty, and refused options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftprune.errors import UsageError
from peftprune.methods.dora_dynamic import DoRADynamic
from peftprune.scoring import norm_shares
from tests.helpers import make_arm
from tests.reference import adalora
from tests.reference import dora_dynamic as slow
from tests.spies import Spy


def test_scores_decisions_and_penalty_agree_with_the_slow_twin(tiny_bert: Path, tmp_path: Path) -> None:
    # Sites of two costs, so that some components are passed over.
    spec, targets = "dora-dynamic(every=4)", ["query", "output.dense"]
    arm = make_arm(spec, tmp_path, tiny_bert, budget="params=2000,steps=60", target_modules=targets)
    strategy: Any = arm.plan.method
    means: dict[str, list[float]] = {}
    steps: list[int] = []
    penalties: list[bool] = []

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        answer = call(*arguments)
        if name == "penalty":
            found = [v for s in arguments[0].values() for v in slow.penalty(s.A.tolist(), s.B.tolist())]
            assert answer is None or float(answer.detach()) == pytest.approx(0.1 * sum(found) / len(found), rel=1e-5)
            penalties.append(answer is not None)
        if name not in ("decide", "end_phase"):
            return answer
        view = arguments[0]
        if name == "decide" and view.step <= 30:
            for site, shown in view.sites.items():
                shares = slow.shares(shown.A.tolist(), shown.B.tolist(), shown.gate.tolist())
                before = means.get(site, [0.0] * len(shares))
                means[site] = [0.9 * m + 0.1 * s for m, s in zip(before, shares, strict=True)]
                assert strategy.sensitivity.mean[site].tolist() == pytest.approx(means[site], rel=1e-5)
        costs = {n: s.unit_cost for n, s in view.sites.items()}
        if answer.zero:
            steps.append(view.step)
            initial = sum(costs[n] * s.rank for n, s in view.sites.items())
            limit = slow.left(initial, view.budget.params, (view.step - 9) / 21, min(costs.values()))
            left = {n: list(range(s.rank)) for n, s in view.sites.items()}
            left |= {n: (~mask["gate"]).nonzero().flatten().tolist() for n, mask in answer.zero.items()}
            assert left == adalora.kept(means, costs, limit)
        if name == "end_phase" and view.phase.name == "pruning":
            kept = {n: list(answer.keep.get(n, range(s.rank))) for n, s in view.sites.items()}
            assert kept == adalora.kept(means, costs, view.budget.params)
        return answer

    _, sites, trainer = arm.with_method(Spy(strategy, around)).build()
    trainer.run()
    assert set(steps) <= set(range(12, 30, 4))
    assert {20, 24, 28} <= set(steps)
    assert penalties == [True] * 30 + [False] * 30
    assert len(set(sites.ranks.values())) > 1


def test_shares_of_components_that_cancel_and_of_nothing() -> None:
    A, B = torch.ones(2, 3), torch.ones(4, 2)
    assert torch.equal(norm_shares(A, B, torch.zeros(2)), torch.zeros(2).double())
    assert float(norm_shares(A, B, torch.tensor([1.0, -0.5]))[0]) == pytest.approx(2)


def test_a_run_without_a_step_to_score_in_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dora-dynamic\.final: 0\.84 leaves no step"):
        make_arm("dora-dynamic(final=0.84)", tmp_path, tiny_bert, budget="rank=4,steps=6")
    with pytest.raises(UsageError, match=r"^dora-dynamic\.beta"):
        DoRADynamic(beta=1.0)
