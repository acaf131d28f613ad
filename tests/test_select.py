"""The choice over all sites together agrees with its slow twin and meets the budget, whatever the scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import UsageError
from peftprune.scoring import keep_top_global, units_that_fit
from tests.reference import select as slow

many = settings(max_examples=200, deadline=None)
# Small integers: ties are frequent, within sites and between them.
components = st.lists(st.integers(0, 4), min_size=1, max_size=6)
problems = st.lists(st.tuples(components, st.integers(1, 5)), min_size=1, max_size=5)


def unpack(problem):
    scores = {f"s{i}": [float(v) for v in values] for i, (values, _) in enumerate(problem)}
    return scores, {f"s{i}": cost for i, (_, cost) in enumerate(problem)}


@many
@given(problems, st.integers(0, 60))
def test_it_is_the_twin(problem, params):
    scores, costs = unpack(problem)
    tensors = {n: torch.tensor(v) for n, v in scores.items()}
    assert keep_top_global(tensors, costs, params) == slow.keep_top_global(scores, costs, params)


@many
@given(problems, st.integers(0, 60))
def test_it_spends_the_budget_and_no_more(problem, params):
    scores, costs = unpack(problem)
    kept = keep_top_global({n: torch.tensor(v) for n, v in scores.items()}, costs, params)
    left = params - sum(len(indices) * costs[n] for n, indices in kept.items())
    assert left >= 0
    assert all(left < costs[n] for n, values in scores.items() if len(kept[n]) < len(values))
    assert all(indices == sorted(set(indices)) for indices in kept.values())
    for name, values in scores.items():
        worst = min((values[k] for k in kept[name]), default=5)
        assert all(v <= worst for k, v in enumerate(values) if k not in kept[name]), "within a site the best stay"


@many
@given(problems, st.integers(0, 60), st.integers(0, 20))
def test_what_is_left_over_is_filled_up(problem, params, extra):
    scores, costs = unpack(problem)
    caps = {n: len(v) + extra for n, v in scores.items()}
    ranks = {
        n: len(k) for n, k in keep_top_global({n: torch.tensor(v) for n, v in scores.items()}, costs, params).items()
    }
    more = units_that_fit(ranks, costs, caps, params)
    after = {n: r + more.get(n, 0) for n, r in ranks.items()}
    left = params - sum(r * costs[n] for n, r in after.items())
    assert left >= 0
    assert all(more[n] > 0 and ranks[n] > 0 for n in more)
    assert all(left < costs[n] for n, r in after.items() if 0 < r < caps[n])


def test_scores_of_every_type_are_compared_as_they_are():
    a, b = torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.0 + 1e-12, 0.5], dtype=torch.float64)
    assert keep_top_global({"a": a, "b": b}, {"a": 1, "b": 1}, 2) == {"a": [1], "b": [0]}
    assert keep_top_global({}, {}, 5) == {}


def test_scores_must_be_finite():
    with pytest.raises(UsageError, match=r"^scores: .* finite"):
        keep_top_global({"a": torch.tensor([1.0, float("nan")])}, {"a": 1}, 2)
