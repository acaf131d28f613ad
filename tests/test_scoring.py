"""Scores and choices agree with the slow twins in `tests/reference`, ties and exact counts included."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import RunError, UsageError
from peftprune.methods.controls import RandomRank
from peftprune.methods.lora_drop import LoRADrop
from peftprune.methods.lorpa import LoRPA
from peftprune.methods.prilora import PRILoRA
from peftprune.scoring import (
    SmoothedSensitivity,
    keep_top,
    lowest_mask,
    output_energy,
    rank_magnitude,
    sensitivity,
    until_share,
    weight_times_input_norm,
)
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.sites import SiteShape
from tests.reference import scoring as slow
from tests.reference import signals as slow_signals

few = settings(max_examples=10, deadline=None)
# Small integers: sums are exact in float32, and ties are frequent.
scores_with_ties = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def matrix(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- magnitude -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "d_in", "d_out"), [("hadamard", 6, 6), ("outer", 6, 6), ("outer", 5, 8)])
def test_rank_magnitude(form, d_in, d_out):
    A, B = matrix(4, d_in, seed=1), matrix(d_out, 4, seed=2)
    expected = slow.rank_magnitude(A.tolist(), B.tolist(), form)
    torch.testing.assert_close(rank_magnitude(A, B, form), torch.tensor(expected))


def test_the_two_forms_differ_where_both_are_defined():
    A, B = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
    assert rank_magnitude(A, B, "hadamard").item() == 0
    assert rank_magnitude(A, B, "outer").item() == 1


def test_hadamard_refuses_other_shapes_and_names_the_cure():
    with pytest.raises(UsageError, match=r"^form: 'hadamard' .*\(4, 5\).*\(8, 4\).*Give \"outer\""):
        rank_magnitude(matrix(4, 5, seed=1), matrix(8, 4, seed=2))


def test_an_unknown_form_is_refused():
    with pytest.raises(UsageError, match=r"^form: 'inner' is unknown. Give \"hadamard\" or \"outer\""):
        rank_magnitude(matrix(4, 5, seed=1), matrix(5, 4, seed=2), "inner")


# --- LoRPA's choice ------------------------------------------------------------------------------------------------


def lorpa_keeps(A, B, n, form, method=LoRPA, seed=0):
    """What LoRPA's plan keeps of one site when its dense phase ends, under a budget of rank n."""
    shape = SiteShape("site", 0, "query", A.shape[1], len(B))
    site = SimpleNamespace(A=A, B=B, rank=len(A), shape=shape, name="site", d_in=shape.d_in, d_out=shape.d_out)
    view = SimpleNamespace(
        phase=SimpleNamespace(name="dense"),
        sites={"site": site},
        rng=torch.Generator().manual_seed(seed),
        budget=ArmBudget(params=n * shape.unit_cost, total_steps=1, num_examples=1, batch_size=1),
    )
    strategy = method(form=form)
    strategy.start(view)
    return list(strategy.end_phase(view).keep["site"])


@pytest.mark.parametrize(("form", "d_in", "d_out"), [("hadamard", 12, 12), ("outer", 12, 12), ("hadamard", 8, 11)])
@few
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8), copies=st.integers(0, 200))
def test_lorpa_keeps_what_its_formula_ranks_highest(form, d_in, d_out, seed, n, copies):
    """r0 = 256 integer components, so that scores are exact, with planted ties: some are copies of others."""
    rng = torch.Generator().manual_seed(seed)
    A = torch.randint(-9, 10, (256, d_in), generator=rng).float()
    B = torch.randint(-9, 10, (d_out, 256), generator=rng).float()
    source, target = torch.randint(0, 256, (2, copies), generator=rng)
    A[target], B[:, target] = A[source], B[:, source]
    # A site that is not square takes the outer form.
    form_used = form if d_in == d_out else "outer"
    scores = slow.rank_magnitude(A.tolist(), B.tolist(), form_used)
    assert lorpa_keeps(A, B, n, form) == slow.keep_top(scores, n)


@pytest.mark.parametrize("form", ["hadamard", "outer"])
def test_lorpa_on_real_values(form):
    A, B = matrix(256, 16, seed=3), matrix(16, 256, seed=4)
    scores = slow.rank_magnitude(A.tolist(), B.tolist(), form)
    assert lorpa_keeps(A, B, 8, form) == slow.keep_top(scores, 8)


def test_random_rank_ignores_the_weights():
    A, B = matrix(256, 16, seed=3), matrix(16, 256, seed=4)
    kept = lorpa_keeps(A, B, 8, "hadamard", RandomRank)
    assert kept == lorpa_keeps(-7 * B.T, A.T, 8, "hadamard", RandomRank)
    assert kept != lorpa_keeps(A, B, 8, "hadamard", RandomRank, seed=1)
    assert len(set(kept)) == 8


# --- choosing ------------------------------------------------------------------------------------------------------


@given(scores=scores_with_ties, data=st.data())
@settings(deadline=None)
def test_keep_top(scores, data):
    n = data.draw(st.integers(0, len(scores)))
    kept = keep_top(torch.tensor(scores, dtype=torch.float32), n)
    assert kept == slow.keep_top(scores, n)
    assert len(kept) == n


def test_keep_top_gives_ties_to_the_lower_index_among_many():
    assert keep_top(torch.ones(1000), 3) == [0, 1, 2]


@pytest.mark.parametrize("n", [-1, 4])
def test_keep_top_refuses_a_count_out_of_range(n):
    with pytest.raises(UsageError, match=rf"^n: {n} is outside 0..3\. Keep at most that many"):
        keep_top(torch.ones(3), n)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_keep_top_refuses_scores_that_are_not_finite(bad):
    with pytest.raises(UsageError, match=r"^scores: \[1\.0, .*not all finite\. .*learning rate"):
        keep_top(torch.tensor([1.0, bad]), 1)


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4), n=st.integers(0, 6))
@settings(deadline=None)
def test_lowest_mask(rows, n):
    expected = slow.pruned(rows, "row", n / 6 + 1e-9)
    assert lowest_mask(torch.tensor(rows, dtype=torch.float32), n).tolist() == expected


@given(scores=st.lists(st.integers(0, 9), min_size=1, max_size=10), tenths=st.integers(1, 10))
@settings(deadline=None)
def test_until_share(scores, tenths):
    named = {f"s{i}": value for i, value in enumerate(scores)}
    kept = until_share({n: float(v) for n, v in named.items()}, tenths / 10)
    assert kept == slow.until_share(named, Fraction(tenths, 10))


def test_until_share_keeps_the_site_that_crosses_and_no_more():
    scores = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.1}
    assert until_share(scores, 0.8) == ["b", "c"]
    assert until_share(scores, 0.81) == ["b", "c", "a"]


@given(scores=st.lists(st.integers(1, 9), min_size=1, max_size=10), tenths=st.integers(5, 9))
@settings(deadline=None)
def test_until_share_of_normalised_scores_is_not_misled_by_rounding(scores, tenths):
    """A sum that reaches the share exactly must not miss it by its last bit."""
    named = {f"s{i}": value for i, value in enumerate(scores)}
    kept = until_share({n: v / sum(scores) for n, v in named.items()}, tenths / 10)
    assert kept == slow.until_share(named, Fraction(tenths, 10))


# --- PRILoRA -------------------------------------------------------------------------------------------------------


def test_weight_times_input_norm():
    A, norm = matrix(3, 5, seed=1), matrix(5, seed=2).abs()
    expected = slow.weight_times_input_norm(A.tolist(), norm.tolist())
    torch.testing.assert_close(weight_times_input_norm(A, norm), torch.tensor(expected))


@pytest.mark.parametrize("pattern", ["row", "matrix", "2:4", "1:3"])
@few
@given(seed=st.integers(0, 10**6), sparsity=st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_prilora_prunes_what_its_formula_ranks_lowest(pattern, seed, sparsity):
    rng = torch.Generator().manual_seed(seed)
    A = torch.randint(-3, 4, (4, 10), generator=rng).float()
    norm = torch.randint(0, 4, (10,), generator=rng).float()
    strategy = PRILoRA(pattern=pattern, sparsity=sparsity)
    strategy.input_norm["site"] = norm
    view = SimpleNamespace(sites={"site": SimpleNamespace(A=A, name="site")})
    mask = strategy.end_phase(view).zero["site"]["A"]
    scores = slow.weight_times_input_norm(A.tolist(), norm.tolist())
    assert mask.tolist() == slow.pruned(scores, pattern, sparsity)


def test_prilora_averages_the_input_norm_over_steps():
    norms = [matrix(5, seed=step).abs() for step in range(4)]
    strategy = PRILoRA(beta=0.8)
    for norm in norms:
        strategy.observe(SimpleNamespace(signals={"input_norm": {"site": norm}}))
    expected = slow_signals.running_norm([n.tolist() for n in norms], 0.8)
    torch.testing.assert_close(strategy.input_norm["site"], torch.tensor(expected))


@pytest.mark.parametrize(("step", "prunes"), [(1, False), (39, False), (40, True), (41, False), (80, False)])
def test_prilora_prunes_every_so_many_steps(step, prunes):
    strategy = PRILoRA(prune_every=40)
    strategy.input_norm["site"] = torch.ones(4)
    sites = {"site": SimpleNamespace(A=torch.ones(2, 4), name="site")}
    view = SimpleNamespace(step=step, total_steps=80, sites=sites)
    assert bool(strategy.decide(view).zero) is prunes
    # The last step's event comes with the end of the phase, so that it happens once.
    assert bool(strategy.end_phase(view).zero)


# --- LoRA-drop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_output_energy(masked):
    A, B, x = matrix(3, 5, seed=1), matrix(6, 3, seed=2), matrix(2, 4, 5, seed=3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]) if masked else None
    expected = slow.output_energy(A.tolist(), B.tolist(), x.tolist(), mask.tolist() if masked else None, 2.0)
    assert output_energy(A, B, x, mask, 2.0) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalise", ["all", "kind"])
def test_lora_drop_scores(normalise):
    shapes = {f"{kind}{i}": SiteShape(f"{kind}{i}", i, kind, 4, 4) for kind in ("q", "v") for i in range(3)}
    strategy = LoRADrop(normalise=normalise)
    energy = {name: float(i * i + 1) for i, name in enumerate(shapes)}
    strategy.energy = {name: torch.tensor(value) for name, value in energy.items()}
    scores = strategy.scores(shapes)
    expected = slow.drop_scores(energy, {n: s.kind for n, s in shapes.items()}, normalise)
    assert scores == pytest.approx(expected)
    assert sum(scores.values()) == pytest.approx(1)


def test_lora_drop_sums_energy_over_the_steps_of_the_scoring_phase_only():
    strategy = LoRADrop()
    for phase, energy in (("probe", 100.0), ("score", 1.0), ("score", 2.0), ("finetune", 100.0)):
        signals = {"output_energy": {"site": torch.tensor(energy)}}
        strategy.observe(SimpleNamespace(phase=SimpleNamespace(name=phase), signals=signals))
    assert {name: float(value) for name, value in strategy.energy.items()} == {"site": 3.0}


def test_lora_drop_without_any_output_is_an_error():
    view = SimpleNamespace(phase=SimpleNamespace(name="score"), sites={})
    with pytest.raises(RunError, match=r"lora-drop: no site produced any output.*more passes"):
        LoRADrop().end_phase(view)


# --- sensitivity ---------------------------------------------------------------------------------------------------


def test_sensitivity_is_the_absolute_product():
    assert sensitivity(torch.tensor([2.0, -3.0]), torch.tensor([-1.0, 0.5])).tolist() == [2.0, 1.5]


def test_smoothed_sensitivity():
    steps = [(matrix(6, seed=i), matrix(6, seed=50 + i)) for i in range(5)]
    smoothed = SmoothedSensitivity(0.85, 0.7)
    for weights, gradients in steps:
        smoothed.update("w", weights, gradients)
    expected = slow.smoothed_sensitivity([(w.tolist(), g.tolist()) for w, g in steps], 0.85, 0.7)
    torch.testing.assert_close(smoothed.score("w"), torch.tensor(expected))


def test_smoothed_sensitivity_goes_on_from_its_state():
    whole, first = SmoothedSensitivity(), SmoothedSensitivity()
    for i in range(4):
        whole.update("w", matrix(6, seed=i), matrix(6, seed=50 + i))
        if i < 2:
            first.update("w", matrix(6, seed=i), matrix(6, seed=50 + i))
    second = SmoothedSensitivity()
    second.load_state_dict(first.state_dict())
    for i in (2, 3):
        second.update("w", matrix(6, seed=i), matrix(6, seed=50 + i))
    assert torch.equal(second.score("w"), whole.score("w"))
