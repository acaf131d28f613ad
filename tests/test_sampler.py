"""The batch order is a function of seed and step alone, whatever the phases."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune.errors import UsageError
from peftprune.strategy.phases import Phase, resolve_phases, subset_size
from peftprune.training.sampler import PhaseBatchSampler

LENGTHS = [3 + (7 * i) % 40 for i in range(103)]


def sampler(*phases, lengths=LENGTHS, strata=None, batch=8, steps=60, seed=0, accumulation=1):
    resolved = resolve_phases(phases or (Phase("all"),), total_steps=steps, num_examples=len(lengths), batch_size=batch)
    return PhaseBatchSampler(lengths, strata, resolved, batch, seed, accumulation)


LAYOUTS = {
    "two": [Phase("a", share=0.2), Phase("b", restart_schedule=True)],
    "three": [Phase("a", share=0.5), Phase("b", share=0.1, kind="forward"), Phase("c", reset_optimizer=True)],
    "subset first": [Phase("probe", passes=2.0, data=0.2), Phase("rest")],
    "subset inside": [Phase("a", share=0.3), Phase("probe", passes=1.0, data=0.4), Phase("rest")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_phase_layout_sees_the_same_batch_at_the_same_step(layout):
    plain, phased = sampler(), sampler(*LAYOUTS[layout])
    checked = 0
    for current in phased.phases:
        if current.phase.data == "all":
            for step in range(current.start, current.stop):
                assert phased.batch(step) == plain.batch(step)
                checked += 1
    assert checked > 40


def test_batches_do_not_depend_on_which_were_asked_for_before():
    fresh, used = sampler(), sampler()
    for step in (50, 3, 17):
        used.batch(step)
    assert used.batch(20) == fresh.batch(20)


@given(n=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 99), data=st.data())
@settings(deadline=None)
def test_each_epoch_is_a_permutation_in_batches(n, batch, seed, data):
    accumulation = data.draw(st.integers(1, batch))
    s = sampler(lengths=LENGTHS[:n], batch=batch, seed=seed, accumulation=accumulation)
    per_epoch = -(-n // batch)
    for epoch in range(2):
        batches = [s.batch(epoch * per_epoch + i) for i in range(per_epoch)]
        assert sorted(itertools.chain(*batches)) == list(range(n))
        assert [len(b) for b in batches] == [min(batch, n - i * batch) for i in range(per_epoch)]
        s.set_epoch(epoch)
        served = list(s)
        assert len(served) == len(s)
        assert served == [part for i in range(per_epoch) for part in s.micro_batches(epoch * per_epoch + i)]
        assert list(itertools.chain(*served)) == list(itertools.chain(*batches))
        assert all(served)


def test_epochs_and_seeds_differ_and_repeat():
    first = [sampler().batch(step) for step in range(26)]
    assert [sampler().batch(step) for step in range(26)] == first
    assert first[:13] != first[13:]
    assert [sampler(seed=1).batch(step) for step in range(13)] != first[:13]


def test_the_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sampler().batch(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert sampler().batch(0) == first


def test_grouping_by_length_pads_less_than_a_random_order():
    lengths = [5 + (37 * i) % 120 for i in range(1000)]
    grouped = sampler(lengths=lengths, batch=16, steps=63)
    padded = sum(grouped.cost(step)[2] for step in range(63))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    random = sum(len(b) * max(lengths[i] for i in b) for b in (order[i : i + 16] for i in range(0, 1000, 16)))
    tokens = sum(lengths)
    assert padded - tokens < 0.2 * (random - tokens)


def test_batches_of_alike_lengths_do_not_come_in_order_of_length():
    lengths = list(range(1, 401))
    s = sampler(lengths=lengths, batch=8, steps=50)
    longest = [max(lengths[i] for i in s.batch(step)) for step in range(50)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


# --- subsets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([60, 30, 10], 0.1, [6, 3, 1]),
        ([50, 50], 0.5, [25, 25]),
        ([97, 3], 0.1, [10, 0]),
        ([5, 5], 0.1, [1, 0]),
        ([34, 33, 33], 0.1, [4, 3, 3]),
    ],
)
def test_subsets_are_stratified_by_largest_remainder(sizes, fraction, expected):
    strata = [c for c, n in enumerate(sizes) for _ in range(n)]
    s = sampler(lengths=[5] * len(strata), strata=strata)
    picked = Counter(strata[i] for i in s.subset(fraction))
    assert [picked[c] for c in range(len(sizes))] == expected


def test_equal_fractions_name_the_same_subset():
    phases = [
        Phase("probe", passes=2.0, data=0.2),
        Phase("score", passes=1.0, data=0.2, kind="forward"),
        Phase("rest"),
    ]
    s = sampler(*phases, strata=[i % 3 for i in range(103)])
    probe, score, _ = s.phases
    seen = {r.name: [i for step in range(r.start, r.stop) for i in s.batch(step)] for r in (probe, score)}
    assert sorted(seen["score"]) == s.subset(0.2)
    assert Counter(seen["probe"]) == dict.fromkeys(s.subset(0.2), 2)
    assert sampler(seed=1).subset(0.2) != sampler().subset(0.2)


def test_the_subset_does_not_depend_on_phase_or_batch_size():
    assert sampler(batch=8).subset(0.3) == sampler(*LAYOUTS["three"], batch=5).subset(0.3)


def test_each_pass_over_a_subset_has_its_own_order():
    s = sampler(Phase("probe", passes=2.0, data=0.4), Phase("rest"))
    (half,) = {r.steps // 2 for r in s.phases if r.name == "probe"}
    assert [s.batch(i) for i in range(half)] != [s.batch(half + i) for i in range(half)]


# --- micro-batches -------------------------------------------------------------------------------------------------


@given(
    n=st.integers(12, 60),
    batch=st.integers(2, 12),
    fraction=st.sampled_from([0.3, 0.5, 0.8]),
    data=st.data(),
)
@settings(deadline=None, max_examples=150)
def test_micro_batches_partition_the_batch_and_none_is_empty(n, batch, fraction, data):
    accumulation = data.draw(st.integers(1, batch))
    phases = [Phase("probe", passes=1.0, data=fraction), Phase("rest")]
    members = subset_size(n, fraction)
    if members // math.ceil(members / batch) < accumulation:
        with pytest.raises(UsageError, match="probe"):
            sampler(*phases, lengths=LENGTHS[:n], batch=batch, steps=80, accumulation=accumulation)
        return
    s = sampler(*phases, lengths=LENGTHS[:n], batch=batch, steps=80, accumulation=accumulation)
    for step in range(80):
        parts = s.micro_batches(step)
        assert list(itertools.chain(*parts)) == s.batch(step)
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert len(parts) == (s._last_parts if (step + 1) % s.steps_per_epoch == 0 else accumulation)


def test_accumulation_above_the_last_batch_gives_single_examples():
    s = sampler(lengths=LENGTHS[:19], batch=8, accumulation=4)
    assert [len(part) for part in s.micro_batches(2)] == [1, 1, 1]
    assert len(s) == 4 + 4 + 3


def test_a_last_batch_of_one():
    s = sampler(lengths=LENGTHS[:17], batch=8, accumulation=3)
    assert [[len(part) for part in s.micro_batches(step)] for step in range(3)] == [[3, 3, 2], [3, 3, 2], [1]]


def test_fewer_examples_than_a_batch():
    s = sampler(lengths=LENGTHS[:5], batch=8, accumulation=2, steps=3)
    assert len(s) == 2
    assert [sorted(s.batch(step)) for step in range(3)] == [[0, 1, 2, 3, 4]] * 3


def test_a_subset_too_small_to_be_accumulated_is_refused():
    with pytest.raises(UsageError, match=r"probe: 0\.02 has steps of fewer than 4 examples.*Sample more data"):
        sampler(Phase("probe", passes=1.0, data=0.02), Phase("rest"), accumulation=4)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_cost_counts_examples_tokens_and_padding(accumulation):
    s = sampler(lengths=LENGTHS[:21], batch=8, accumulation=accumulation)
    for step in range(3):
        samples = tokens = padded = 0
        for part in s.micro_batches(step):
            longest = max(LENGTHS[i] for i in part)
            for i in part:
                samples, tokens, padded = samples + 1, tokens + LENGTHS[i], padded + longest
        assert s.cost(step) == (samples, tokens, padded)
