"""GoRA, Fisher ranks and the gradient phase before training, against a slow twin."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from peftprune.callback.compatibility import check_run
from peftprune.errors import RunError, UsageError
from peftprune.methods.gora import GoRA
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.phases import phase_ranges
from peftprune.strategy.sites import SiteShape, rank_cost
from tests.helpers import Arm, make_arm
from tests.reference import gora as slow
from tests.spies import digest
from tests.test_methods import run_watched

TARGETS = ["query", "intermediate.dense", "output.dense"]


def view_of(shapes: list[SiteShape], params: int) -> Any:
    sites = {s.name: SimpleNamespace(shape=s) for s in shapes}
    return SimpleNamespace(sites=sites, budget=ArmBudget(params, 100, 100, 1))


def probed(arm: Arm) -> dict[str, Any]:
    """Trains an arm whose probe has two batches; returns their gradients by site, and factors right after the probe."""
    inputs: dict[str, torch.Tensor] = {}
    kept: dict[str, Any] = {"gradients": {s.name: [] for s in arm.plan.shapes}, "digests": []}

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept.update(sites=sites, trainer=trainer, model=model)
        for name in sites:

            def hook(module: Any, args: Any, out: torch.Tensor, name: str = name) -> None:
                inputs[name] = args[0].detach()
                if out.requires_grad and "after" not in kept:
                    out.register_hook(lambda g: collect(name, g))

            model.get_submodule(f"base_model.model.{name}").register_forward_hook(hook)

    def collect(name: str, gradient: torch.Tensor) -> None:
        found = torch.einsum("bto,bti->oi", gradient.double(), inputs[name].double())
        kept["gradients"][name].append(found.numpy())

    def look(view: Any) -> None:
        state = kept["trainer"].optimizer.state
        kept["digests"].append(digest([*kept["model"].parameters(), *(v for s in state.values() for v in s.values())]))

    def after(step: int) -> None:
        if step == 2:
            kept["after"] = {n: (s.A.double().numpy(), s.B.double().numpy()) for n, s in kept["sites"].items()}

    run_watched(arm, {"built": built, "before_step": look}, after)
    return kept


def ranks_of_the_twin(arm: Arm, weights: list[float], least: float, most: int) -> list[int]:
    shapes, uniform = arm.plan.shapes, arm.plan.budget.solve(arm.plan.shapes)
    return slow.ranks(
        weights,
        [s.unit_cost for s in shapes],
        [max(1, int(uniform[s.name] * least)) for s in shapes],
        [min(most * uniform[s.name], s.max_rank) for s in shapes],
        [s.max_rank for s in shapes],
        arm.plan.budget.params,
    )


@pytest.mark.parametrize("sign", ["released", "descent"])
def test_ranks_and_start_are_those_of_the_slow_twin(sign: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(f"gora(sign={sign!r})", tmp_path, tiny_bert, budget="params=3001,steps=24", target_modules=TARGETS)
    kept = probed(arm)
    # Two steps without an update, of which the second ends with new adapters.
    assert [a == b for a, b in pairwise(kept["digests"])][:3] == [True, False, False]
    pruning, sampler = kept["trainer"].pruning, kept["trainer"].sampler
    read = [sampler.cost(step) for step in range(24)]
    cost = sum(pruning._base_cost.step_flops(n, n / size, kept["sites"], True)[0] for size, _, n in read)
    cost += 2 * sum(n for *_, n in read[:2]) * sum(s.d_in * s.d_out for s in arm.plan.shapes)
    assert (pruning.ledger.base_flops, pruning.ledger.forward_only_samples) == (pytest.approx(cost), 0)
    sites, means = kept["sites"], {n: sum(found) / 2 for n, found in kept["gradients"].items()}
    weights = [slow.importance(s.base_weight.tolist(), means[n].tolist()) / s.unit_cost for n, s in sites.items()]
    expected = ranks_of_the_twin(arm, weights, 0.5, 4)
    assert [len(A) for A, _ in kept["after"].values()] == expected
    assert max(expected) - min(expected) > 1
    for name, (A, B) in kept["after"].items():
        wanted = slow.start_of_B(means[name], A, 0.05, sites[name].scaling) * (1 if sign == "released" else -1)
        np.testing.assert_allclose(B, wanted, rtol=1e-3, atol=1e-5 * abs(wanted).max())


def test_fisher_ranks_are_those_of_the_slow_twin(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("fisher", tmp_path, tiny_bert, budget="params=3001,steps=24", target_modules=TARGETS)
    kept = probed(arm)
    weights = [sum(slow.mean_square(g.tolist()) for g in found) / 2 for found in kept["gradients"].values()]
    expected = ranks_of_the_twin(arm, weights, 0, 2)
    assert [len(A) for A, _ in kept["after"].values()] == expected
    assert max(expected) - min(expected) > 1
    assert not any(B.any() for _, B in kept["after"].values())


def test_limits_hold_and_the_budget_is_met() -> None:
    shapes = [SiteShape(f"s{i}", i, "k", 20 + 3 * i, 30) for i in range(7)]
    rng = np.random.default_rng(0)
    for case in range(60):
        method = GoRA(least=float(rng.choice([0, 0.5, 1])), most=float(rng.choice([1.0, 2.0, 4.0])))
        view = view_of(shapes, int(rng.integers(400, 6000)))
        uniform = view.budget.solve(shapes)
        weights = {s.name: float(w) for s, w in zip(shapes, rng.lognormal(0, 3, 7), strict=True)}
        weights["s3"] = weights["s3"] if case % 2 else 0.0
        found = method.ranks(weights, view)
        left = view.budget.params - rank_cost(found, shapes)
        assert 0 <= left < min((s.unit_cost for s in shapes if found[s.name] < s.max_rank), default=left + 1)
        assert all(rank >= max(1, int(method.config.least * uniform[n])) for n, rank in found.items())
        if case % 2:
            least = [max(1, int(method.config.least * uniform[s.name])) for s in shapes]
            most = [min(s.max_rank, round(method.config.most * uniform[s.name])) for s in shapes]
            costs, caps = [s.unit_cost for s in shapes], [s.max_rank for s in shapes]
            assert list(found.values()) == slow.ranks(
                list(weights.values()), costs, least, most, caps, view.budget.params
            )


def test_the_probe_is_at_most_a_tenth_of_the_run() -> None:
    for total, steps in ((1000, 32), (100, 10), (5, 1)):
        budget = ArmBudget(1000, total, 10_000, 8)
        assert [r.steps for r in phase_ranges(GoRA().phases(budget), budget)] == [steps, total - steps]


def test_a_conv1d_shows_its_weight_as_the_update_has_it(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    arm = make_arm("gora", tmp_path, tiny_models["gpt2"], target_modules=["c_attn"])
    _, sites, _ = arm.build()
    for site in sites.values():
        assert site.base_weight.shape == (site.d_out, site.d_in)
        assert torch.equal(site.base_weight.T, site._layer.get_base_layer().weight)


def test_gradients_that_are_zero_are_named() -> None:
    view = view_of([SiteShape("s", 0, "k", 4, 4)], 8)
    view.phase = SimpleNamespace(name="probe", steps=1)
    view.sites["s"] = SimpleNamespace(shape=view.sites["s"].shape, base_weight=torch.ones(4, 4), unit_cost=8)
    method = GoRA()
    method.sums = {"s": torch.zeros(4, 4)}
    with pytest.raises(RunError, match=r"^gora: the gradients of the probe are zero or not finite"):
        method.end_phase(view)


def test_scaled_gradients_are_refused() -> None:
    phases: Any = [SimpleNamespace(phase=GoRA().phases(ArmBudget(8, 100, 100, 1))[0])]
    state: Any = SimpleNamespace(is_hyper_param_search=False, global_step=0)
    with pytest.raises(UsageError, match=r"^fp16: True scales the gradients"):
        check_run(SimpleNamespace(fp16=True, max_grad_norm=1.0), state, phases, resumed=False)
