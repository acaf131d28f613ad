"""FlexLoRA: agreement with a slow twin, and what keeps the budget."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from peftprune.scoring import gate_entropy
from tests.helpers import make_arm
from tests.reference import flexlora as slow
from tests.spies import Spy
from tests.test_contract import assert_budget_met


def test_entropy_agrees_with_the_slow_twin() -> None:
    rng = torch.Generator().manual_seed(0)
    for rank in (1, 2, 3, 8):
        gate = torch.randn(rank, generator=rng, dtype=torch.float64)
        assert gate_entropy(gate) == pytest.approx(slow.entropy(gate.tolist()), rel=1e-12)
    assert gate_entropy(torch.tensor([2.0, -2.0, 2.0])) == pytest.approx(1)
    assert gate_entropy(torch.tensor([0.0, 3.0])) == gate_entropy(torch.zeros(2)) == 0


def test_rounds_agree_with_the_slow_twin(tiny_bert: Path, tmp_path: Path) -> None:
    # Sites of two costs, so that what goes does not always pay for what comes.
    targets = ["query", "output.dense"]
    arm = make_arm("flexlora(every=5)", tmp_path, tiny_bert, budget="params=1500,steps=80", target_modules=targets)
    rounds: list[int] = []

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        answer = call(*arguments)
        if name == "decide" and not answer.is_empty:
            view = arguments[0]
            sites, (first, last) = view.sites, (8, 60)
            wanted = round(4 * (1 - ((view.step - first) / (last - first)) ** 3))
            gates = {n: s.gate.double().tolist() for n, s in sites.items()}
            costs, caps = {n: s.unit_cost for n, s in sites.items()}, {n: s.max_rank for n, s in sites.items()}
            kept, takers = slow.exchange(gates, costs, caps, view.budget.params, wanted)
            assert {n: list(answer.keep.get(n, range(s.rank))) for n, s in sites.items()} == kept
            left = view.budget.params - sum(costs[n] * (len(kept[n]) + takers.count(n)) for n in sites)
            # What is left over after one unit each goes to the sites that cost most.
            extra = Counter(answer.grow) - Counter(takers)
            assert all(answer.grow[n] >= 1 for n in takers)
            assert sum(costs[n] * units for n, units in extra.items()) <= left
            assert answer.scores == pytest.approx({n: slow.entropy(g) for n, g in gates.items()}, rel=1e-6)
            rounds.append(view.step)
        return answer

    strategy: Any = arm.plan.method
    _, sites, trainer = arm.with_method(Spy(strategy, around)).build()
    trainer.run()
    # At step 58 b rounds to 0.
    assert rounds == list(range(13, 58, 5))
    assert len(set(sites.ranks.values())) > 1


def test_ranks_move_and_no_site_loses_its_last_component(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("flexlora(every=1,exchanged=50,fade=False)", tmp_path, tiny_bert)
    result = arm.run()
    assert_budget_met(arm, result)
    ranks = [row["rank"] for row in result["allocation"]]
    assert min(ranks) >= 1 < max(ranks) - min(ranks)
    single = make_arm("flexlora(every=1)", tmp_path / "one", tiny_bert, budget="rank=1,steps=24")
    assert {row["rank"] for row in single.run()["allocation"]} == {1}
