"""LoRA-Squeeze against its slow twin, and moments through the rotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from peftprune import scoring
from peftprune.adapters.surgery import apply_plan
from peftprune.errors import RunError
from peftprune.strategy.plan import PruningPlan
from tests.helpers import make_arm
from tests.reference import squeeze as slow
from tests.test_methods import run_watched
from tests.tiny import adapt, logits, stir, tiny_bert, train_steps, trainable


@pytest.mark.parametrize(
    ("options", "steps", "squeezes"),
    [("mode='in',squeezes=3", [6, 12, 18], 3), ("mode='continued'", [19], 1), ("mode='post'", [24], 1)],
)
def test_it_truncates_as_its_twin_does(
    options: str, steps: list[int], squeezes: int, tiny_bert: Path, tmp_path: Path
) -> None:
    spec, targets = f"squeeze(initial_rank=16,{options})", ["query", "output.dense"]
    arm = make_arm(spec, tmp_path, tiny_bert, budget="rank=3,steps=24", target_modules=targets)
    kept: dict[str, Any] = {"step": [], "ranks": []}

    def end(view: Any) -> None:
        kept["before"] = {n: (s.A.double().numpy(), s.B.double().numpy()) for n, s in view.sites.items()}

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept.update(sites=sites, trainer=trainer)

    def after(step: int) -> None:
        sites, before = kept["sites"], kept.pop("before", None) or {}
        if not before or all(site.rank == len(before[n][0]) for n, site in sites.items()):
            return
        kept["step"].append(step)
        kept["ranks"].append({site.rank for site in sites.values()})
        for name, site in sites.items():
            A, B, share = slow.truncate(*before[name], site.rank)
            np.testing.assert_allclose(site.B.double() @ site.A.double(), B @ A, atol=1e-5 * abs(B @ A).max())
            np.testing.assert_allclose(site.A.norm(dim=1), np.linalg.norm(A, axis=1), rtol=1e-3)
            np.testing.assert_allclose(site.B.norm(dim=0), np.linalg.norm(B, axis=0), rtol=1e-3)
            assert kept["trainer"].pruning.trace.rows[-1]["scores"][name] == pytest.approx(share, rel=1e-5)

    run_watched(arm, {"built": built, "end_phase": end}, after)
    assert kept["step"] == steps
    assert kept["ranks"] == [{rank} for rank in slow.ranks(16, 3, squeezes)]
    assert kept["ranks"][-1] == {3}


def stirred() -> tuple[Any, Any, Any]:
    model, sites = adapt(tiny_bert())
    stir(sites)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3)
    train_steps(model, optimizer, 2)
    return model, sites, optimizer


def test_first_moments_follow_as_the_gradient_does() -> None:
    model, sites, optimizer = stirred()
    before = logits(model)
    gradients = {}
    for name, site in sites.items():
        gradients[name] = torch.randn(site.d_out, site.d_in, dtype=torch.float64)
        A, B = site._lora_A.weight, site._lora_B.weight
        optimizer.state[A]["exp_avg"].copy_(site.scaling * site.B.double().T @ gradients[name])
        optimizer.state[B]["exp_avg"].copy_(site.scaling * gradients[name] @ site.A.double().T)
    rotate = {n: scoring.balancing_rotation(s.A, s.B)[1:] for n, s in sites.items()}
    squares = {n: optimizer.state[s._lora_B.weight]["exp_avg_sq"].double() for n, s in sites.items()}
    squares = {n: v.clone() for n, v in squares.items()}
    apply_plan(sites, PruningPlan(rotate=rotate), optimizer=optimizer)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)
    for name, site in sites.items():
        A, B = site._lora_A.weight, site._lora_B.weight
        wanted = site.scaling * site.B.double().T @ gradients[name]
        torch.testing.assert_close(optimizer.state[A]["exp_avg"].double(), wanted, atol=1e-4, rtol=1e-3)
        wanted = site.scaling * gradients[name] @ site.A.double().T
        torch.testing.assert_close(optimizer.state[B]["exp_avg"].double(), wanted, atol=1e-4, rtol=1e-3)
        wanted = squares[name] @ rotate[name][0].T.square()
        torch.testing.assert_close(optimizer.state[B]["exp_avg_sq"].double(), wanted, atol=1e-10, rtol=1e-4)


def test_a_rotation_is_checked_before_anything_changes() -> None:
    _, sites, _ = stirred()
    name = next(iter(sites))
    with pytest.raises(RunError, match=r"^plan\.rotate\['.*query'\]: takes two matrices of shape \(\d, \d\)"):
        apply_plan(sites, PruningPlan(rotate={name: (torch.eye(2), torch.eye(3))}))


def test_a_component_without_a_singular_value_becomes_zero() -> None:
    A, B = torch.randn(3, 6, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    values, T, S = scoring.balancing_rotation(A, B)
    assert not any(found.any() for found in (values, T, S))


@pytest.mark.parametrize("moments", ["carry", "reset"])
def test_reset_clears_the_optimizer_at_a_truncation(moments: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(f"squeeze(initial_rank=8,squeezes=1,moments={moments!r})", tmp_path, tiny_bert)
    found: dict[int, int] = {}
    kept: dict[str, Any] = {}

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept["trainer"] = trainer

    run_watched(arm, {"built": built}, lambda step: found.update({step: len(kept["trainer"].optimizer.state)}))
    assert (found[12] == 0) == (moments == "reset")
    assert found[11] == found[13] > 0
