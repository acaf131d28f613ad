"""Phases cover the run exactly, and every step has its learning rate."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import UsageError
from peftprune.strategy.phases import Phase, phase_at, resolve_phases, subset_size
from peftprune.training.schedule import learning_rate_factors
from tests.reference import schedule as slow


def ranges(*phases, steps=100, examples=320, batch=32):
    return resolve_phases(phases, total_steps=steps, num_examples=examples, batch_size=batch)


def lengths(*phases, **sizes):
    return [r.steps for r in ranges(*phases, **sizes)]


@given(steps=st.integers(3, 400), share=st.floats(0.01, 0.98), passes=st.floats(0.01, 2.0))
@settings(deadline=None)
def test_phases_cover_the_run_exactly(steps, share, passes):
    try:
        found = ranges(Phase("a", share=share), Phase("b", passes=passes, data=0.1), Phase("c"), steps=steps)
    except UsageError:
        # 32 of 320 examples are one batch, so that b has at most 2 steps.
        assert round(share * steps) < 1 or round(share * steps) + 2 >= steps
        return
    assert [r.start for r in found] == [0, found[0].stop, found[1].stop]
    assert found[-1].stop == steps
    assert all(r.steps >= 1 for r in found)
    assert [phase_at(found, step).name for step in range(steps)] == [r.name for r in found for _ in range(r.steps)]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([Phase("all")], [100]),
        ([Phase("all", share=1.0)], [100]),
        ([Phase("a", share=0.2), Phase("b")], [20, 80]),
        ([Phase("a", share=0.2), Phase("b", share=0.8)], [20, 80]),
        ([Phase("a", passes=1.0), Phase("b")], [10, 90]),
        ([Phase("a", passes=3.0, data=0.1), Phase("b")], [3, 97]),
        ([Phase("a", passes=3.0, data=0.11), Phase("b")], [6, 94]),
        ([Phase("a", passes=0.5, data=0.5), Phase("b")], [3, 97]),
        ([Phase("a"), Phase("b", share=0.1)], [90, 10]),
    ],
)
def test_lengths(phases, expected):
    assert lengths(*phases) == expected


@pytest.mark.parametrize("steps", [5, 7, 99, 101])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.3, 0.5), (1 / 3, 1 / 3, 1 / 3)])
def test_shares_that_sum_to_one_cover_any_number_of_steps(shares, steps):
    found = lengths(*(Phase(f"p{i}", share=share) for i, share in enumerate(shares)), steps=steps)
    assert sum(found) == steps
    assert all(abs(n - share * steps) < 1 for n, share in zip(found, shares, strict=True))


@pytest.mark.parametrize(
    ("phases", "steps", "parts"),
    [
        ([Phase("a", share=0.5), Phase("b", share=0.4)], 100, "a=50, b=40"),
        ([Phase("a", share=0.5), Phase("b", share=0.6)], 100, "a=50, b=60"),
        ([Phase("a", share=0.2), Phase("b")], 2, "a=0, b=2"),
        ([Phase("a", passes=3.0), Phase("b")], 30, "a=30, b=0"),
        ([Phase("a", passes=4.0), Phase("b")], 30, "a=40, b=-10"),
        ([Phase("a"), Phase("b")], 30, "['a', 'b']"),
    ],
)
def test_phases_that_do_not_fit_are_refused(phases, steps, parts):
    with pytest.raises(UsageError, match=r"^phases: .+\. .+") as caught:
        ranges(*phases, steps=steps)
    assert parts in str(caught.value)


def test_the_last_phase_goes_on_after_the_end():
    found = ranges(Phase("a", share=0.2), Phase("b"))
    assert [phase_at(found, step).name for step in (0, 19, 20, 99, 100, 1000)] == ["a", "a", "b", "b", "b", "b"]


@pytest.mark.parametrize(("n", "fraction", "size"), [(100, 0.1, 10), (100, 0.001, 1), (7, 0.5, 4), (9, 0.3, 3)])
def test_subset_size(n, fraction, size):
    assert subset_size(n, fraction) == size


# --- learning rate -------------------------------------------------------------------------------------------------


@given(steps=st.integers(2, 300), share=st.floats(0.1, 0.9), warmup=st.floats(0, 0.99), restart=st.booleans())
@settings(deadline=None)
def test_learning_rate_factors(steps, share, warmup, restart):
    try:
        found = ranges(Phase("a", share=share), Phase("b", restart_schedule=restart), steps=steps)
    except UsageError:
        assert round(share * steps) in (0, steps)
        return
    factors = learning_rate_factors(found, warmup)
    assert len(factors) == steps
    assert all(0 < factor <= 1 for factor in factors)
    segments = [r.steps for r in found] if restart else [steps]
    assert factors == pytest.approx(slow.factors(segments, warmup))


def test_a_restart_gives_a_second_warm_up_of_its_own_length():
    found = ranges(Phase("a", share=0.2), Phase("b", restart_schedule=True))
    factors = learning_rate_factors(found, 0.1)
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[19] == pytest.approx(1 / 18)
    assert factors[20:29] == pytest.approx([i / 9 for i in range(1, 10)])
    assert factors[99] == pytest.approx(1 / 72)
    rises = [i for i in range(1, 100) if factors[i] > factors[i - 1]]
    assert rises == [1, 2, *range(20, 29)]


def test_without_a_restart_a_phase_changes_nothing():
    split = ranges(Phase("a", share=0.2), Phase("b", reset_optimizer=True))
    assert learning_rate_factors(split, 0.06) == learning_rate_factors(ranges(Phase("all")), 0.06)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert learning_rate_factors(ranges(Phase("all"), steps=4), 0.0) == [1, 0.75, 0.5, 0.25]


def test_a_single_step_has_the_full_rate():
    assert learning_rate_factors(ranges(Phase("all"), steps=1), 0.5) == [1.0]
