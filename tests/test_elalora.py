"""ElaLoRA: agreement with a slow twin, what new components are, and the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftprune.errors import UsageError
from peftprune.methods.elalora import ElaLoRA
from tests.helpers import make_arm
from tests.reference import elalora as slow
from tests.spies import Spy
from tests.test_adalora import shown
from tests.test_contract import assert_budget_met


class Following:
    """Works everything out beside the strategy, and compares."""

    def __init__(self, strategy: ElaLoRA, first: int, last: int) -> None:
        self.strategy, self.first, self.last = strategy, first, last
        self.twin = slow.Following()
        self.compared = 0
        self.rounds: list[tuple[int, int]] = []

    def __call__(self, name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        if name != "decide":
            return call(*arguments)
        view = arguments[0]
        sites = view.sites
        scored = view.step < self.last
        active = self.first < view.step < self.last
        if scored:
            for site, tensors in shown(view).items():
                self.twin.step(site, tensors)
        wanted = slow.exchanged(4, (view.step - self.first) / (self.last - self.first)) if active else 0
        due = wanted > 0 and (view.step - self.first) % 5 == 0
        if due:
            expected = {n: [self.twin.score(n, k) for k in range(s.rank)] for n, s in sites.items()}
        if scored and not due:
            self.check(view)
        answer = call(*arguments)
        assert answer.is_empty == (not due)
        if due:
            costs, caps = {n: s.unit_cost for n, s in sites.items()}, {n: s.max_rank for n, s in sites.items()}
            kept, grown = slow.exchange(expected, costs, caps, view.budget.params, wanted, candidates=2)
            assert {n: list(answer.keep.get(n, range(s.rank))) for n, s in sites.items()} == kept
            assert {n: answer.grow.get(n, 0) for n in sites} == grown
            for n, site in sites.items():
                self.twin.renumber(n, kept[n], grown[n], {"A": site.d_in, "B": site.d_out, "gate": 1})
                for values in answer.assign.get(n, {}).values():
                    assert torch.isfinite(values).all()
            self.rounds.append((view.step, sum(grown.values())))
        return answer

    def check(self, view: Any) -> None:
        """Compare the scores of the step before, components having been renumbered since."""
        self.compared += 1
        before = slow.Following()
        before.entries = dict(self.twin.entries)
        # The strategy updates when it is called; here it is asked on a copy that took in the same step.
        fresh = ElaLoRA()
        fresh.load_state_dict(self.strategy.state_dict())
        fresh.sensitivity.update(view.sites)
        for name, site in view.sites.items():
            expected = torch.tensor([before.score(name, k) for k in range(site.rank)], dtype=torch.float64)
            torch.testing.assert_close(fresh.sensitivity.scores(site).double(), expected, rtol=1e-6, atol=1e-30)


def test_scores_and_exchanges_agree_with_the_slow_twin(tiny_bert: Path, tmp_path: Path) -> None:
    spec = "elalora(every=5,exchanged=4,warmup=0.1,final=0.1)"
    # Sites of two costs, so that what goes does not always pay for what comes.
    arm = make_arm(spec, tmp_path, tiny_bert, budget="params=1500,steps=80", target_modules=["query", "output.dense"])
    strategy: Any = arm.plan.method
    following = Following(strategy, first=8, last=72)
    _, sites, trainer = arm.with_method(Spy(strategy, following)).build()
    trainer.run()
    assert following.compared >= 48
    assert [step for step, _ in following.rounds] == list(range(13, 72, 5))
    assert any(grown for _, grown in following.rounds)
    assert len(set(sites.ranks.values())) > 1


def test_ranks_move_and_the_budget_stays(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("elalora(every=2)", tmp_path, tiny_bert)
    result = arm.run()
    assert_budget_met(arm, result)
    assert len({row["rank"] for row in result["allocation"]}) > 1
    assert result["ledger"]["peak_params"] == result["ledger"]["final_params"] == result["budget"]["params"]
    rounds = [row["reason"] for row in arm.folder.allocation() if row["reason"].startswith("cut")]
    counts = [int(reason.split()[1]) for reason in rounds]
    assert counts[0] == 4 > counts[-1]
    assert all(reason == f"cut {n} components, added {n}" for reason, n in zip(rounds, counts, strict=True))


def test_new_components_are_unit_directions_that_change_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("elalora(every=4)", tmp_path, tiny_bert)
    plans = []

    def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        answer = call(*arguments)
        if name == "decide" and answer.grow:
            plans.append((answer, {n: arguments[0].sites[n].rank for n in answer.grow}))
        return answer

    strategy: Any = arm.plan.method
    _, _, trainer = arm.with_method(Spy(strategy, around)).build()
    trainer.run()
    assert plans
    for plan, ranks in plans:
        for name, extra in plan.grow.items():
            A, B, gate = (plan.assign[name][kind] for kind in ("A", "B", "gate"))
            assert len(gate) == len(plan.keep.get(name, range(ranks[name]))) + extra
            assert not gate[-extra:].any()
            torch.testing.assert_close(A[-extra:].norm(dim=1), torch.ones(extra))
            torch.testing.assert_close(B[:, -extra:].norm(dim=0), torch.ones(extra))


def test_no_site_loses_its_last_component(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("elalora(every=1,exchanged=50,candidates=9,fade=False)", tmp_path, tiny_bert)
    result = arm.run()
    assert_budget_met(arm, result)
    assert min(row["rank"] for row in result["allocation"]) >= 1
    single = make_arm("elalora(every=1)", tmp_path / "one", tiny_bert, budget="rank=1,steps=24")
    assert {row["rank"] for row in single.run()["allocation"]} == {1}


@pytest.mark.parametrize(
    ("option", "value"),
    [("exchanged", 0), ("candidates", 0), ("every", -1), ("warmup", -0.1), ("final", 1.0), ("beta2", 1.0),
     ("penalty", -1.0), ("penalty_form", "l1")],
)  # fmt: skip
def test_options_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"^elalora\.{option}: .*(Give|Use)"):
        ElaLoRA(**{option: value})


def test_a_run_without_a_round_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"elalora\.every: 50 has no round .* steps 3 to 17\. Lower it"):
        make_arm("elalora(every=50)", tmp_path, tiny_bert)
    make_arm("elalora(every=15)", tmp_path, tiny_bert)
    make_arm("elalora", tmp_path, tiny_bert, budget="rank=4,steps=9")
