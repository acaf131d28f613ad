"""svd: truncation after training, against its slow twin and on every architecture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from peftprune.errors import UsageError
from peftprune.methods.global_cut import cut_to_budget
from peftprune.methods.registry import load
from peftprune.scoring.magnitude import update_svd
from tests.helpers import make_arm
from tests.reference import svd as slow
from tests.test_methods import run_watched


def matrix(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("d_out", "r", "d_in"), [(9, 4, 7), (5, 5, 8), (8, 3, 3), (6, 1, 6)])
def test_the_factors_give_the_decomposition_of_the_product(d_out: int, r: int, d_in: int) -> None:
    A, B = matrix(r, d_in, seed=1), matrix(d_out, r, seed=2)
    U, S, V = update_svd(A, B)
    assert (U.shape, S.shape, V.shape) == ((d_out, r), (r,), (r, d_in))
    product = B.double() @ A.double()
    torch.testing.assert_close(U * S @ V, product)
    torch.testing.assert_close(S, torch.linalg.svdvals(product)[:r])
    torch.testing.assert_close(U.T @ U, torch.eye(r, dtype=torch.float64))


def test_a_product_of_lower_rank_has_zero_singular_values() -> None:
    A, B = matrix(3, 6, seed=1), torch.zeros(5, 3)
    B[:, 0] = 1.0
    S = update_svd(A, B)[1]
    assert S[0] > 1
    assert S[1:].abs().max() < 1e-12


@pytest.mark.parametrize("architecture", ["bert", "bart", "llama"])
def test_it_truncates_as_its_twin_does(architecture: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    arm = make_arm(
        "svd(initial_rank=8)",
        tmp_path,
        tiny_models[architecture],
        budget="rank=3,steps=50",
        target_modules="all-linear",
    )
    kept: dict[str, Any] = {}
    strategy: Any = arm.plan.method

    def end(view: Any) -> None:
        kept["factors"] = {n: (s.A.double().numpy(), s.B.double().numpy()) for n, s in view.sites.items()}
        kept["plan"] = strategy.__class__.end_phase(strategy, view)

    def built(model: Any, sites: Any, trainer: Any) -> None:
        kept["sites"] = sites

    run_watched(arm, {"built": built, "end_phase": end})
    sites, plan = kept["sites"], kept["plan"]
    costs = {s.name: s.unit_cost for s in arm.plan.shapes}
    values, expected, truncated = slow.truncate(kept["factors"], 2.0, costs, arm.plan.budget.params)
    assert plan.keep == expected
    for name, score in plan.scores.items():
        assert score == pytest.approx(np.sqrt(sum(v * v for v in values[name])), rel=1e-6)
    ranks = set()
    for name, site in sites.items():
        assert site.rank == len(expected[name]) + plan.grow.get(name, 0)
        ranks.add(site.rank)
        if site.rank:
            delta = 2.0 * (site.B.double() @ site.A.double()).numpy()
            np.testing.assert_allclose(delta, truncated[name], atol=1e-6 * values[name][0] + 1e-7)
    assert len(ranks) > 2, "the threshold is global, so ranks differ"


def test_singular_values_agree_with_the_twin(tmp_path: Path) -> None:
    for seed in range(5):
        A, B = matrix(4, 7, seed=seed).double(), matrix(6, 4, seed=100 + seed).double()
        expected = [s for s, _, _ in slow.triplets(slow.update(A.numpy(), B.numpy(), 2.0), 4)]
        assert (2.0 * update_svd(A, B)[1]).tolist() == pytest.approx(expected, rel=1e-6)


def test_what_is_left_of_the_budget_grows_a_full_site() -> None:
    """The cheap sites keep all they have, and what is left pays for one more of them, but for no dear one."""
    sites = {
        "cheap": SimpleNamespace(unit_cost=2, max_rank=9),
        "dear": SimpleNamespace(unit_cost=5, max_rank=9),
        "gone": SimpleNamespace(unit_cost=1, max_rank=9),
    }
    scores = {"cheap": torch.tensor([9.0, 8.0]), "dear": torch.tensor([7.0, 1.0]), "gone": torch.zeros(0)}
    view: Any = SimpleNamespace(sites=sites, budget=SimpleNamespace(params=13))
    assert cut_to_budget(scores, view) == ({"cheap": [0, 1], "dear": [0], "gone": []}, {"cheap": 2})


def test_the_rank_must_be_a_whole_number_above_0() -> None:
    with pytest.raises(UsageError, match=r"^svd.initial_rank: 0 is not at least 1. Give 32"):
        load("svd")(initial_rank=0)
