"""DyLoRA: what every step of a real run computes and trains, and the truncation, against a slow twin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from peftprune.errors import UsageError
from peftprune.methods.registry import load
from tests.helpers import make_arm
from tests.reference import dylora as slow
from tests.test_methods import run_watched


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_every_step_computes_and_trains_the_first_components(
    rescale: bool, architecture: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    arm = make_arm(
        f"dylora(initial_rank=6,rescale={rescale})",
        tmp_path,
        tiny_models[architecture],
        budget="rank=2,steps=50",
        target_modules="all-linear",
    )
    kept: dict[str, Any] = {}
    drawn: list[int] = []
    seen: dict[str, Any] = {}

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept["sites"] = sites
        for name in sites:
            layer = model.get_submodule(f"base_model.model.{name}")
            layer.register_forward_hook(lambda m, args, out, n=name: seen.update({n: (args[0].detach(), out.detach())}))

    def observe(view: Any) -> None:
        for name, site in view.sites.items():
            trained = site.grad_B.abs().sum(0) > 0
            b = int(trained.sum())
            assert trained.tolist() == [True] * b + [False] * (6 - b), "the first components, and no others"
            if name == next(iter(view.sites)):
                drawn.append(b)
            assert b == drawn[-1], "one draw for all sites"
            x, out = seen[name]
            x, out = x.reshape(-1, site.d_in)[0], out.reshape(-1, site.d_out)[0]
            layer = kept["sites"][name]._layer.base_layer
            added = (out - layer(x)).double()
            expected = slow.output(site.A.tolist(), site.B.tolist(), x.tolist(), b, 2.0, rescale)
            size = max(map(abs, expected))
            assert added.tolist() == pytest.approx(expected, abs=1e-5 * (1 + size + float(out.abs().max())))

    def end_phase(view: Any) -> None:
        kept["tensors"] = {n: (s.A.clone(), s.B.clone()) for n, s in view.sites.items()}

    _, sites, _ = run_watched(arm, {"built": built, "observe": observe, "end_phase": end_phase})
    counts = Counter(drawn)
    assert len(drawn) == 50
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    x = torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, (A, B) in kept["tensors"].items():
        site = sites[name]
        assert site.rank == 2
        assert torch.equal(site.A, A[:2])
        read = x.repeat(4)[: site.d_in]
        found = 2.0 * (site.B.double() @ (site.A.double() @ read))
        expected = slow.output(A.double().tolist(), B.double().tolist(), read.tolist(), 2, 2.0, rescale)
        size = max(map(abs, expected))
        assert found.tolist() == pytest.approx(expected, abs=1e-6 * size), "the function of the truncation stays"


@pytest.mark.parametrize(
    ("method", "budget"), [("dylora(frozen=True)", "rank=4,steps=24"), ("dylora", "paper")], ids=["option", "paper"]
)
def test_frozen_trains_the_drawn_component_alone(method: str, budget: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(
        method, tmp_path, tiny_bert, budget=budget, epochs=3, weight_decay=0.0, gradient_accumulation_steps=2
    )
    trained: list[int] = []
    kept: dict[str, Any] = {}

    def observe(view: Any) -> None:
        used = trainer_of["pruning"].method.inner.drawn
        for name, site in view.sites.items():
            (trains,) = slow.trains(site.rank, used)
            rows, columns = site.grad_A.abs().sum(1), site.grad_B.abs().sum(0)
            assert columns.nonzero().flatten().tolist() == [trains], name
            assert set(rows.nonzero().flatten().tolist()) <= {trains}, "B is zero at first"
            shown = kept["sites"][name]._lora_A.rank_multiplier
            assert (shown > 0).tolist() == [k < used for k in range(site.rank)], "the forward pass uses the first b"
        trained.append(used)

    trainer_of: dict[str, Any] = {}

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept["sites"], trainer_of["pruning"] = sites, trainer.pruning

    run_watched(arm, {"built": built, "observe": observe})
    assert len(set(trained)) > 2
    assert not any(tensor._backward_hooks for site in kept["sites"].values() for tensor in site.parameters())


def test_by_default_the_largest_rank_is_the_budgets(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("dylora", tmp_path, tiny_bert, budget="params=1501,steps=24")
    assert arm.plan.spec.ranks == arm.plan.budget.solve(arm.plan.shapes)
    result = arm.run()
    assert [row["reason"] for row in arm.folder.allocation()] == ["initial ranks"]
    assert result["ledger"]["peak_params"] == result["ledger"]["final_params"]


def draws(folder: Path, model: Path, **settings: Any) -> list[int]:
    arm = make_arm("dylora(smallest=2)", folder, model, budget="rank=5,steps=40", **settings)
    strategy: Any = arm.plan.method
    found: list[int] = []
    original = strategy.before_step

    def before_step(view: Any) -> Any:
        answer = original(view)
        found.append(int((next(iter(answer.values())) > 0).sum()))
        return answer

    strategy.before_step = before_step
    arm.run()
    return found


def test_ranks_are_drawn_from_the_strategys_own_stream(tiny_bert: Path, tmp_path: Path) -> None:
    first, again = draws(tmp_path / "a", tiny_bert), draws(tmp_path / "b", tiny_bert)
    assert first == again
    assert set(first) == {2, 3, 4, 5}
    assert first != draws(tmp_path / "c", tiny_bert, seed=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_rank": -1}, r"^dylora.initial_rank: -1 is not at least 0. Give 0"),
        ({"smallest": 0}, r"^dylora.smallest: 0 is not at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("dylora")(**options)


def test_the_smallest_rank_must_not_exceed_the_largest(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dylora.smallest: 5 is above the largest rank, 4. Give a smaller one"):
        make_arm("dylora(smallest=5)", tmp_path, tiny_bert)
