"""IncreLoRA: agreement with a slow twin, the reserve, and that the budget is spent in time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from peftprune.errors import UsageError
from peftprune.methods.increlora import IncreLoRA
from tests.helpers import make_arm
from tests.reference import increlora as slow
from tests.spies import Spy
from tests.test_contract import assert_budget_met
from tests.test_methods import run_watched


class Following:
    """Works everything out beside the strategy, and compares."""

    def __init__(self, strategy: IncreLoRA, top_h: int, units: int, first: int, last: int) -> None:
        self.strategy, self.top_h, self.units, self.first, self.last = strategy, top_h, units, first, last
        self.twin: slow.Sites | None = None
        self.compared = 0
        self.rounds: list[int] = []

    def __call__(self, name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        if name not in ("start", "before_step", "observe", "decide", "end_phase"):
            return call(*arguments)
        view = arguments[0]
        sites = view.sites
        if name == "start":
            self.twin = slow.Sites(list(sites))
        assert self.twin is not None
        if name == "observe" and view.step <= self.last:
            for site in sites.values():
                gates, gradients = site.gate.double().tolist(), site.grad_gate.double().tolist()
                reserve = slice(self.twin.ranks[site.name], None)
                assert not any(gates[reserve])
                assert not any(gradients[reserve])
                self.twin.step(site.name, gates, gradients)
        answer = call(*arguments)
        if name == "decide" and view.step < self.last:
            self.compared += 1
            scores = self.strategy.scores(view)
            assert scores == pytest.approx({n: self.twin.score(n) for n in sites}, rel=1e-6, abs=1e-30)
        if name in ("decide", "end_phase") and not answer.is_empty:
            self.rounds.append(view.step)
            costs, caps = {n: s.unit_cost for n, s in sites.items()}, {n: s.max_rank for n, s in sites.items()}
            final = name == "end_phase"
            self.twin.grow(costs, caps, view.budget.params, self.units, None if final else self.top_h)
            assert self.strategy.active == self.twin.ranks
            stored = {n: self.twin.ranks[n] + (0 if final else self.units) for n in sites}
            after = {n: len(answer.keep.get(n, range(s.rank))) + answer.grow.get(n, 0) for n, s in sites.items()}
            assert after == stored
        return answer


def test_scores_and_growth_agree_with_the_slow_twin(tiny_bert: Path, tmp_path: Path) -> None:
    spec = "increlora(top_h=2,units=1,warmup=0.1,final=0.1)"
    # Sites of two costs, so that one may not be affordable where another is.
    arm = make_arm(spec, tmp_path, tiny_bert, budget="params=1500,steps=70", target_modules=["query", "output.dense"])
    strategy: Any = arm.plan.method
    following = Following(strategy, top_h=2, units=1, first=7, last=63)
    _, sites, trainer = arm.with_method(Spy(strategy, following)).build()  # type: ignore[arg-type]
    trainer.run()
    assert following.compared >= 60
    costs = [s.unit_cost for s in arm.plan.shapes]
    rounds = math.ceil((1500 - sum(costs)) / (2 * sum(costs) / len(costs)))
    expected = slow.round_steps(7, 63, rounds)
    assert expected[-1] == 63
    # A round in which nothing is affordable any more is none.
    assert following.rounds == [s for s in expected if s in following.rounds]
    assert len(following.rounds) > 3
    assert sites.ranks == following.twin.ranks  # type: ignore[union-attr]


@pytest.mark.parametrize("advance", [True, False])
def test_the_reserve_is_trained_by_the_penalty_alone_and_goes(advance: bool, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(f"increlora(advance={advance},units=2)", tmp_path, tiny_bert, weight_decay=0.0)
    assert set(arm.plan.spec.ranks.values()) == {3 if advance else 1}
    seen: dict[int, Any] = {}

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        if name == "decide":
            view = arguments[0]
            seen[view.step] = {n: (s.A[1:].clone(), s.grad_A[1:].clone()) for n, s in view.sites.items()}
        return call(*arguments)

    strategy: Any = arm.plan.method
    _, sites, trainer = arm.with_method(Spy(strategy, around)).build()
    first = {n: s.A[1:].clone() for n, s in sites.items()}
    trainer.run()
    if advance:
        for name, (rows, gradients) in seen[1].items():
            assert not torch.equal(rows, first[name])
            assert bool(gradients.any())
    assert sum(sites.ranks.values()) == 16
    assert min(sites.ranks.values()) >= 1


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_dense_score_is_the_released_one(accumulation: int, tiny_bert: Path, tmp_path: Path) -> None:
    spec = "increlora(score='dense',top_h=2,units=1,warmup=0.1,final=0.1)"
    settings = {"target_modules": ["query", "output.dense"], "gradient_accumulation_steps": accumulation}
    arm = make_arm(spec, tmp_path, tiny_bert, budget="rank=3,steps=24", **settings)
    seen: dict[str, list[torch.Tensor]] = {}
    gradients: dict[str, list[torch.Tensor]] = {}
    compared = []

    def built(model: Any, sites: Any, trainer: Any) -> None:
        for name in sites:
            layer = model.get_submodule(f"base_model.model.{name}")

            def hook(module: Any, args: Any, out: torch.Tensor, name: str = name) -> None:
                seen.setdefault(name, []).append(args[0].detach())
                if out.requires_grad:
                    out.register_hook(lambda g: gradients.setdefault(name, []).append(g))

            layer.register_forward_hook(hook)

    strategy: Any = arm.plan.method
    twin = slow.Sites([s.name for s in arm.plan.shapes])

    def observe(view: Any) -> None:
        for name, site in view.sites.items():
            parts = zip(gradients.pop(name), seen.pop(name), strict=True)
            whole = sum(torch.einsum("bto,bti->oi", g.double(), x.double()) for g, x in parts)
            delta = site.scaling * site.B.double() @ torch.diag(site.gate.double()) @ site.A.double()
            if view.phase.name != "final":
                twin.take_in(name, slow.dense(delta.tolist(), whole.tolist()))

    def decide(view: Any) -> None:
        if view.phase.name != "final":
            assert strategy.scores(view) == pytest.approx({n: twin.score(n) for n in twin.ranks}, rel=1e-3, abs=1e-30)
            compared.append(max(map(twin.score, twin.ranks)))

    run_watched(arm, {"built": built, "observe": observe, "decide": decide})
    assert len(compared) > 15
    assert compared[-1] > 0


def test_units_default_to_half_of_the_budgets_rank(tiny_bert: Path, tmp_path: Path) -> None:
    for rank, units in ((2, 1), (4, 2), (6, 3), (8, 4), (3, 1), (1, 1)):
        arm = make_arm("increlora", tmp_path / str(rank), tiny_bert, budget=f"rank={rank},steps=24")
        assert set(arm.plan.spec.ranks.values()) == {1 + units}


def test_a_budget_of_rank_one_has_nothing_to_grow(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("increlora", tmp_path, tiny_bert, budget="rank=1,steps=24")
    result = arm.run()
    assert_budget_met(arm, result)
    assert {row["rank"] for row in result["allocation"]} == {1}


def test_a_budget_that_cannot_be_spent_in_time_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"increlora\.top_h: 1 needs 28 rounds .* 11 steps .*Raise top_h or units"):
        make_arm("increlora(top_h=1,units=1)", tmp_path, tiny_bert, budget="rank=8,steps=24")


@pytest.mark.parametrize(
    ("option", "value"),
    [("top_h", 0), ("units", -1), ("warmup", 1.0), ("final", 1.0), ("beta1", 0.0), ("penalty", -0.1),
     ("penalty_form", "l1")],
)  # fmt: skip
def test_options_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^increlora\.{option}: .*(Give|Use)"):
        IncreLoRA(**{option: value})
