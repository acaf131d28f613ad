"""Each statistic against an independent computation: enumeration, scipy, and statsmodels where it is installed."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from peftprune import stats
from peftprune.errors import UsageError
from peftprune.stats.metrics import METRICS, compute_metrics
from peftprune.stats.paired import _variances
from peftprune.stats.resampling import resample
from tests.reference import stats as slow

FEW = settings(max_examples=40, deadline=None)
SCORES = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 2))
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=9)


def columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


# --- sign flips


@FEW
@given(PAIRS)
def test_permutation_is_the_enumeration(pairs: list[tuple[float, float]]) -> None:
    a, b = columns(pairs)
    p = stats.paired_permutation(a, b)
    assert p == pytest.approx(slow.paired_permutation(a, b), abs=1e-12)
    assert stats.smallest_permutation_p(len(a)) <= p <= 1
    assert stats.paired_permutation(b, a) == p


def test_permutation_agrees_with_scipy_and_pools_tasks_and_seeds() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.4, 1, (2, 5)), rng.normal(0, 1, (2, 5))
    theirs = scipy.stats.permutation_test(
        (a.ravel(), b.ravel()), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", vectorized=True
    )
    assert stats.paired_permutation(a, b) == pytest.approx(theirs.pvalue)


def test_five_seeds_cannot_be_significant() -> None:
    assert stats.paired_permutation([2, 3, 4, 5, 6], [1, 1, 1, 1, 1]) == 0.0625 == stats.smallest_permutation_p(5)
    assert stats.smallest_permutation_p(1) == 1.0


def test_permutation_draws_patterns_where_there_are_too_many() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(0.3, 1, 40)
    zeros = np.zeros(40)
    p = stats.paired_permutation(a, zeros, resamples=20_000)
    assert p == stats.paired_permutation(a, zeros, resamples=20_000, seed=0)
    # For sums of this many values the normal approximation is good.
    approximate = 2 * scipy.stats.norm.sf(abs(a.sum()) / math.sqrt((a**2).sum()))
    assert p == pytest.approx(approximate, abs=4 * math.sqrt(approximate / 20_000) + 0.002)
    assert stats.paired_permutation(zeros + 1, zeros, resamples=999) == pytest.approx(1 / 1000)


def test_pairs_that_tie_need_no_enumeration() -> None:
    a, b = np.zeros(500), np.zeros(500)
    a[:6] = 1
    assert stats.paired_permutation(a, b) == 2**-5


@FEW
@given(PAIRS, st.sampled_from([0.05, 0.1, 0.3]))
def test_the_permutation_interval_holds_what_the_test_does_not_reject(
    pairs: list[tuple[float, float]], level: float
) -> None:
    a, b = columns(pairs)
    low, high = stats.permutation_interval(a, b, level)
    assert (low <= 0 <= high) == (stats.paired_permutation(a, b) > level)
    if stats.smallest_permutation_p(len(a)) > level:
        assert (low, high) == (-math.inf, math.inf)
        return
    for end, outwards in ((low, -1), (high, 1)):
        step = 1e-4 * outwards
        assert slow.paired_permutation(list(np.subtract(a, end - step)), b) > level or low == high
        assert slow.paired_permutation(list(np.subtract(a, end + step)), b) <= level


@pytest.mark.parametrize("shift", [0.2, 0.3, 0.4, 0.5])
def test_the_permutation_interval_uses_the_patterns_drawn_for_p(shift: float) -> None:
    a = np.random.default_rng(5).normal(shift, 1, 30)
    p = stats.paired_permutation(a, np.zeros(30), resamples=999)
    for level in (p - 1e-3, p, 0.02):
        low, high = stats.permutation_interval(a, np.zeros(30), level, resamples=999)
        assert (low <= 0 <= high) == (p > level)


# --- McNemar, Holm


@FEW
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mcnemar_is_the_enumeration_and_the_binomial_test(pairs: list[tuple[bool, bool]]) -> None:
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    p = stats.mcnemar(a, b)
    assert p == pytest.approx(slow.mcnemar(a, b), abs=1e-12)
    only_a, only_b = sum(x > y for x, y in pairs), sum(x < y for x, y in pairs)
    if only_a + only_b:
        assert p == pytest.approx(scipy.stats.binomtest(only_a, only_a + only_b).pvalue)


def test_mcnemar_agrees_with_statsmodels() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    rng = np.random.default_rng(0)
    a, b = rng.random(60) < 0.8, rng.random(60) < 0.6
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert stats.mcnemar(a, b) == pytest.approx(tables.mcnemar(table, exact=True).pvalue)


@FEW
@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=8))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    adjusted = stats.holm(p_values)
    assert adjusted == pytest.approx(slow.holm(p_values), nan_ok=True)
    made = [(p, q) for p, q in zip(p_values, adjusted, strict=True) if not math.isnan(p)]
    assert all(p <= q <= 1 for p, q in made)
    assert all(q1 <= q2 for (p1, q1), (p2, q2) in itertools.product(made, made) if p1 <= p2)


def test_holm_by_hand_and_statsmodels() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.02, math.nan, 0.03]) == pytest.approx([0.04, math.nan, 0.04], nan_ok=True)
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert stats.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


@FEW
@given(st.lists(st.one_of(st.floats(0, 0.1), st.just(math.nan)), max_size=8))
def test_holm_levels_decide_as_the_adjusted_p_does(p_values: list[float]) -> None:
    levels, adjusted = stats.holm_levels(p_values), stats.holm(p_values)
    for p, level, q in zip(p_values, levels, adjusted, strict=True):
        if not math.isnan(p):
            assert level <= 0.05
            assert (p <= level) == (q <= 0.05)


def test_holm_levels_by_hand() -> None:
    assert stats.holm_levels([0.04, 0.01, 0.02]) == pytest.approx([0.05, 0.05 / 3, 0.05 / 2])
    # The first is not rejected, so its level holds for the second too, which would be significant alone.
    assert stats.holm_levels([0.03, 0.04]) == pytest.approx([0.025, 0.025])
    assert stats.holm_levels([math.nan, 0.2]) == pytest.approx([math.nan, 0.05], nan_ok=True)


def family(rng: np.random.Generator, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(z-like differences, p of the three tests) of methods whose differences are 0, ±1 (the margin) or in between."""
    truth = rng.choice([-1.0, 0.0, 0.0, 0.4, 1.0, 3.0], size)
    d = truth + rng.normal(size=size) * 0.35
    tail = scipy.stats.norm.sf
    return truth, np.stack([2 * tail(abs(d) / 0.35), 2 * tail((d + 1) / 0.35), 2 * tail((1 - d) / 0.35)]).clip(0, 1)


def test_levels_with_a_margin_show_what_is_rejected() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        _, p = family(rng)
        found = stats.adjust(*p)
        assert (found.levels <= 0.05).all()
        for raw, adjusted in zip(p, (found.p, found.p_above, found.p_below), strict=True):
            assert ((raw <= found.levels) == (adjusted <= 0.05)).all()
        alone = stats.adjust(p[0])
        assert (alone.p.tolist(), alone.levels.tolist()) == (
            stats.holm(p[0]).tolist(),
            stats.holm_levels(p[0]).tolist(),
        )


def test_any_false_verdict_is_rare_with_a_margin() -> None:
    rng, n, wrong = np.random.default_rng(1), 3000, 0
    for _ in range(n):
        truth, p = family(rng)
        found = stats.adjust(*p)
        assert found.p_above is not None
        assert found.p_below is not None
        false = (found.p <= 0.05) & (truth == 0)
        false |= (found.p_above <= 0.05) & (truth <= -1) | (found.p_below <= 0.05) & (truth >= 1)
        wrong += false.any()
    assert wrong <= scipy.stats.binom.ppf(1 - 1e-4, n, 0.05)


def test_adjustment_with_a_margin_by_hand() -> None:
    # Sums of counts: 2, then 1.5 twice, then 1.
    found = stats.adjust([0.9, 0.001], [0.03, 0.002], [0.02, 0.6])
    assert found.p.tolist() == pytest.approx([0.9, 0.002])
    assert found.p_above is not None
    assert found.p_below is not None
    assert found.p_above.tolist() == pytest.approx([0.045, 0.003])
    assert found.p_below.tolist() == pytest.approx([0.03, 0.9])
    assert found.levels.tolist() == pytest.approx([0.05 / 1.5, 0.05 / 1.5])


# --- one method


def test_summary_is_students() -> None:
    scores = [0.7, 0.75, 0.8, 0.72]
    found = stats.summary(scores)
    theirs = scipy.stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert (found.mean, found.std) == pytest.approx((np.mean(scores), np.std(scores, ddof=1)))
    assert (found.low, found.high, found.n) == pytest.approx((theirs.low, theirs.high, 4))
    one = stats.summary([0.7])
    assert one.mean == 0.7
    assert all(math.isnan(x) for x in (one.std, one.low, one.high))


def test_a_deviation_is_pooled_over_methods() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(m, 2.0, 3) for m in range(6)]
    found = stats.shared_deviation([*groups, [0.5]])
    assert found.std == pytest.approx(math.sqrt(np.mean([g.var(ddof=1) for g in groups])))
    assert found.degrees == 12
    # Bartlett's approximation is good for groups of this size, and the draws agree with it.
    large = [rng.normal(0, s, 12) for s in (1.0, 1.4, 1.2)]
    assert stats.shared_deviation(large).p == pytest.approx(scipy.stats.bartlett(*large).pvalue, abs=0.03)
    assert stats.shared_deviation([[1, 1], [1, 2], [2, 5]]).p == 1e-4
    assert stats.shared_deviation([[1.0], [2.0]])[1] == 0
    assert math.isnan(stats.shared_deviation([[1, 2]]).p)


@pytest.mark.parametrize("seeds", [2, 3])
def test_equal_variances_are_rarely_refused(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    p = [stats.shared_deviation(rng.normal(size=(5, seeds))).p for _ in range(200)]
    assert (
        scipy.stats.binom.ppf(1e-4, 200, 0.05) <= sum(x <= 0.05 for x in p) <= scipy.stats.binom.ppf(0.9999, 200, 0.05)
    )


# --- effects and ranks


def test_effect_size_by_hand() -> None:
    a, b = [1.0, 2.0, 3.0, 5.0], [0.0, 2.0, 1.0, 2.0]
    d_z = 1.5 / np.std([1, 0, 2, 3], ddof=1)
    assert stats.effect_size(a, b, corrected=False) == pytest.approx(d_z)
    # J for 3 degrees of freedom, √(2/3)·Γ(1.5)/Γ(1); the usual approximation 1 − 3/(4·3 − 1) is 0.727.
    assert stats.effect_size(a, b) == pytest.approx(d_z * math.sqrt(2 / 3) * math.gamma(1.5))
    assert stats.effect_size(a, a) == 0
    assert stats.effect_size([1.1, 2.1, 3.1], [1.0, 2.0, 3.0]) == math.inf
    assert stats.effect_size([1.0], [2.0], corrected=False) != stats.effect_size([1.0], [1.0])


def test_hedges_correction_takes_out_the_bias() -> None:
    d = np.random.default_rng(0).normal(0.5, 1, (4000, 6))
    assert np.mean([stats.effect_size(row, np.zeros(6)) for row in d]) == pytest.approx(0.5, abs=0.03)


@FEW
@given(st.lists(SCORES, min_size=1, max_size=8), st.lists(SCORES, min_size=1, max_size=8))
def test_probability_of_improvement_is_the_enumeration(a: list[float], b: list[float]) -> None:
    value = stats.probability_of_improvement(a, b)
    assert value == pytest.approx(slow.probability_of_improvement(a, b))
    assert value + stats.probability_of_improvement(b, a) == pytest.approx(1)
    assert value == pytest.approx(scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    tasks = stats.probability_of_improvement(np.transpose([a, a]), np.transpose([b, b]))
    assert tasks == pytest.approx(value)


@FEW
@given(st.integers(2, 6), st.integers(3, 5), st.randoms(use_true_random=False))
def test_ranks_are_their_definition(tasks: int, methods: int, random: Random) -> None:
    scores = [[random.randint(0, 3) for _ in range(methods)] for _ in range(tasks)]
    ranks = stats.average_ranks(scores)
    assert ranks == pytest.approx(slow.average_ranks(scores))
    assert ranks.sum() == pytest.approx(methods * (methods + 1) / 2)
    assert stats.average_ranks(-np.array(scores), higher_is_better=False) == pytest.approx(ranks)
    found = stats.friedman(scores)
    if any(len(set(row)) > 1 for row in scores):
        assert found.statistic == pytest.approx(slow.friedman_statistic(scores), abs=1e-9)
        assert found.p == pytest.approx(scipy.stats.chi2.sf(found.statistic, methods - 1))
    else:
        assert found == (0.0, 1.0)


def test_critical_difference_is_demsars_table() -> None:
    for k, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        assert stats.critical_difference(k, 14) == pytest.approx(q * math.sqrt(k * (k + 1) / 84), abs=2e-3)
    # The studentized range by its definition: how far apart four normal values lie.
    ranges = np.ptp(np.random.default_rng(0).normal(size=(100_000, 4)), axis=1)
    assert stats.critical_difference(4, 1, alpha=0.1) == pytest.approx(
        np.quantile(ranges, 0.9) / math.sqrt(2) * math.sqrt(20 / 6), rel=0.01
    )


def test_critical_difference_separates_what_nemenyis_test_does() -> None:
    posthocs = pytest.importorskip("scikit_posthocs")
    scores = np.random.default_rng(3).normal(size=(12, 4)) + np.arange(4) * 0.6
    ranks = stats.average_ranks(scores)
    apart = np.abs(ranks[:, None] - ranks) > stats.critical_difference(4, 12)
    assert (apart == (posthocs.posthoc_nemenyi_friedman(scores).to_numpy() < 0.05)).all()
    assert apart.any()


# --- paired bootstrap


def predictions(kind: str, seed: int, shape: tuple[int, int, int] = (2, 3, 40)) -> tuple[np.ndarray, np.ndarray]:
    """(methods × seeds × examples, references), of three classes, two, or numbers."""
    rng = np.random.default_rng(seed)
    if kind == "regression":
        truth = rng.normal(3, 1, shape[-1])
        return truth + rng.normal(0, 1, shape), truth
    classes = 3 if kind == "several" else 2
    truth = rng.integers(0, classes, shape[-1])
    return np.where(rng.random(shape) < 0.7, truth, rng.integers(0, classes, shape)), truth


CASES = [
    (name, kind)
    for name, metric in METRICS.items()
    if metric.kind != "generation" and metric.sums is not None
    for kind in ("regression", "two", "several")
]
CASES = [
    (n, k) for n, k in CASES if (METRICS[n].kind == "regression") == (k == "regression") and (n, k) != ("f1", "several")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_sums_give_the_metrics_of_the_project(name: str, kind: str) -> None:
    """On the data, and on each resample: the two ways to compute draw from one distribution."""
    (a, b), truth = predictions(kind, 0)
    found = stats.paired_bootstrap(a, b, references=truth, metric=name, resamples=2000)

    def of(predicted: np.ndarray, references: np.ndarray) -> float:
        return compute_metrics([name], predicted, references)[name]

    assert found.difference == pytest.approx(np.mean([of(x, truth) - of(y, truth) for x, y in zip(a, b, strict=True)]))
    if (name, kind) in (("matthews", "two"), ("pearson", "regression")):  # both are correlations of two columns

        def correlation(predicted: np.ndarray, references: np.ndarray) -> float:
            return float(np.corrcoef(predicted, references)[0, 1])

        twin = stats.paired_bootstrap(a[:1], b[:1], references=truth, metric=correlation, resamples=1000, seed=1)
        fast = stats.paired_bootstrap(a[:1], b[:1], references=truth, metric=name, resamples=2000)
        assert twin.difference == pytest.approx(fast.difference)
        assert twin.example_std == pytest.approx(fast.example_std, rel=0.1)


@pytest.mark.parametrize("name", ["f1", "f1_macro", "matthews"])
def test_sums_hold_for_constant_predictions(name: str) -> None:
    truth = [0, 1, 1, 0]
    for constant in (0, 1):
        a = [constant] * 4
        found = stats.paired_bootstrap(a, truth, references=truth, metric=name, resamples=50)
        assert found.difference == pytest.approx(compute_metrics([name], a, truth)[name] - 1)
    assert [name for name, metric in METRICS.items() if metric.sums is None] == ["spearman"]


def test_a_metric_without_sums_is_called() -> None:
    (a, b), truth = predictions("regression", 0, (2, 2, 20))
    found = stats.paired_bootstrap(a, b, references=truth, metric="spearman", resamples=20)
    mean = [np.mean([scipy.stats.spearmanr(row, truth).statistic for row in method]) for method in (a, b)]
    assert found.difference == pytest.approx(mean[0] - mean[1])


def test_resampled_examples_are_the_enumeration() -> None:
    (a, b), truth = predictions("two", 5, (2, 2, 5))

    def f1(predicted: list[float], references: list[float]) -> float:
        hits = sum(p == r == 1 for p, r in zip(predicted, references, strict=True))
        return 2 * hits / max(1, sum(predicted) + sum(references))

    every = np.array(slow.resampled_differences(a.tolist(), b.tolist(), truth.tolist(), f1))
    models = np.concatenate([a, b]).astype(float)
    drawn = resample(models, truth.astype(float), "f1", 20_000, np.random.default_rng(0))[1]
    drawn = drawn[:, :2] - drawn[:, 2:]
    assert drawn.mean(axis=0) == pytest.approx(every.mean(axis=0), abs=0.015)
    assert np.cov(drawn.T) == pytest.approx(np.cov(every.T), abs=0.01)


def test_variances_are_those_of_the_crossed_design() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(size=(4, 1)) * 0.3 + rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    values, drawn = resample(np.concatenate([d, 0 * d]), np.zeros(30), None, 40_000, rng)
    examples, seeds, interaction = slow.crossed_variances(d.tolist())
    found = _variances(values[:4] - values[4:], drawn[:, :4] - drawn[:, 4:])
    assert found.interaction == pytest.approx(interaction, rel=0.05)
    assert found.seed_excess == pytest.approx(seeds - interaction, rel=0.1)
    assert found.one_seed * (found.common + (1 - found.common) / 4) == pytest.approx(examples, rel=0.03)


def test_one_seed_is_the_plain_bootstrap_of_examples() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 200)) < np.array([[0.8], [0.7]])
    found = stats.paired_bootstrap(a, b)
    theirs = scipy.stats.bootstrap((a * 1.0 - b,), np.mean, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert found.seed_std == 0


def test_seeds_alone_give_students_test() -> None:
    """Where all examples agree, only the seeds vary."""
    d = np.array([0.5, 0.7, 0.2, 0.9, 0.4])
    found = stats.paired_bootstrap(np.repeat(d[:, None], 10, axis=1), np.zeros((5, 10)), resamples=100_000)
    theirs = scipy.stats.ttest_1samp(d, 0)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.05)
    assert found.p == pytest.approx(theirs.pvalue, abs=0.005)
    assert found.seed_std == pytest.approx(d.std(ddof=1))


@pytest.mark.parametrize(("seed_std", "seed"), [(0.0, 12), (0.1, 11), (0.1, 12)])
def test_p_is_that_of_the_stated_distribution(seed_std: float, seed: int) -> None:
    """With normal noise the replicates are N(D, V_ex + V₊) mixed over χ²; the parts come from the mean squares."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=(6, 1)) * seed_std + rng.normal(size=(1, 90)) * 0.6 + rng.normal(size=(6, 90))
    d += 0.1 - d.mean()
    examples, seeds, interaction = slow.crossed_variances(d.tolist())
    pivot = seeds * 5 / scipy.stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, 5)
    spread = np.sqrt(examples + np.maximum(0, pivot - interaction))
    expected = 2 * scipy.stats.norm.sf(0.1 / spread).mean()
    found = stats.paired_bootstrap(d, np.zeros_like(d), resamples=40_000)
    # Six drawn seeds are not quite normal, hence no closer; without `interaction` it would be off by 14 % and more.
    assert found.p == pytest.approx(expected, rel=0.04)


@FEW
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 30))
def test_paired_bootstrap_is_coherent(seed: int, seeds: int, examples: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, (2, seeds, examples))
    there = stats.paired_bootstrap(a, b, resamples=400, seed=seed)
    assert there == stats.paired_bootstrap(a, b, resamples=400, seed=seed)
    assert 0 < there.p <= 1
    assert there.low <= there.high
    assert there.difference == pytest.approx((a - b).mean())
    for level in (0.05, 0.01, 0.001):
        low, high = there.interval(level)
        assert (low <= 0 <= high) == (there.p > level)
    assert there.interval(0.05) == (there.low, there.high)
    assert there.interval(0.001) == (-math.inf, math.inf)


@pytest.mark.parametrize("seeds", [1, 3])
def test_identical_predictions_make_no_difference(seeds: int) -> None:
    (a, _), truth = predictions("two", 0, (2, seeds, 30))
    for found in (
        stats.paired_bootstrap(a, a, resamples=500),
        stats.paired_bootstrap(a, a, references=truth, metric="matthews", resamples=500),
    ):
        assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
        assert stats.detectable_from(found) == 0
    scores = a.mean(axis=1)
    assert stats.paired_permutation(scores, scores) == 1
    assert stats.mcnemar(a[0], a[0]) == 1
    assert stats.probability_of_improvement(scores[:1], scores[:1]) == 0.5


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller blocks of resamples draw the same resamples; some BLAS kernels round smaller products differently."""
    (a, b), truth = predictions("regression", 0)
    whole = stats.paired_bootstrap(a, b, references=truth, metric="pearson", resamples=300)
    monkeypatch.setattr("peftprune.stats.resampling._CHUNK", 1000)
    blocks = stats.paired_bootstrap(a, b, references=truth, metric="pearson", resamples=300)
    *scalars, replicates = dataclasses.astuple(blocks)
    *expected, expected_replicates = dataclasses.astuple(whole)
    assert scalars == pytest.approx(expected, rel=1e-12)
    assert replicates == pytest.approx(expected_replicates, rel=1e-12)


# --- words and refusals


def test_verdicts() -> None:
    verdict, outcome = stats.verdict, stats.Verdict
    assert verdict(0.02, 0.01, 5) is outcome.BETTER
    assert verdict(-0.02, 0.01, 5) is outcome.WORSE
    assert verdict(-0.02, 0.01, 5, higher_is_better=False) is outcome.BETTER
    assert verdict(0.02, 0.2, 5) is outcome.NOT_DISTINGUISHABLE
    assert verdict(0.0, 1.0, 2) is outcome.NOT_DISTINGUISHABLE
    smallest = stats.smallest_permutation_p
    assert verdict(0.2, 0.0625, 5, smallest_p=smallest(5)) is outcome.CANNOT_REACH_SIGNIFICANCE
    assert verdict(0.2, 0.03125, 6, smallest_p=smallest(6)) is outcome.BETTER
    assert verdict(0.2, 0.06, 6, smallest_p=smallest(6), comparisons=2) is outcome.CANNOT_REACH_SIGNIFICANCE
    assert verdict(0.2, 0.001, 1) is outcome.CANNOT_REACH_SIGNIFICANCE


@pytest.mark.parametrize(
    ("p", "p_not_worse", "p_equivalent", "expected"),
    [
        (0.01, 0.01, 0.01, "better"),
        (0.2, 0.01, 0.05, "equivalent"),
        (0.2, 0.05, 0.06, "not worse"),
        (0.2, 0.06, 0.06, "undecided"),
    ],
)
def test_verdicts_with_a_margin(p: float, p_not_worse: float, p_equivalent: float, expected: str) -> None:
    found = stats.verdict(0.02, p, 5, p_not_worse=p_not_worse, p_equivalent=p_equivalent)
    assert found.value == expected
    one_seed = stats.verdict(0.02, p, 1, p_not_worse=p_not_worse, p_equivalent=p_equivalent)
    assert one_seed is stats.Verdict.CANNOT_REACH_SIGNIFICANCE


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: stats.paired_permutation([1, 2], [1]), "shape"),
        (lambda: stats.paired_permutation([], []), "shape"),
        (lambda: stats.paired_permutation([1, math.nan], [1, 2]), "1 of 2 values"),
        (lambda: stats.smallest_permutation_p(0), "at least 1"),
        (lambda: stats.mcnemar([0.5], [1]), "0.5"),
        (lambda: stats.holm([1.2]), "1.2"),
        (lambda: stats.holm([[0.1]]), "row"),
        (lambda: stats.summary([1, 2], confidence=95), "95"),
        (lambda: stats.summary([]), "shape"),
        (lambda: stats.probability_of_improvement([[1, 2]], [[1]]), "shape"),
        (lambda: stats.friedman([[1, 2], [2, 1]]), "three methods"),
        (lambda: stats.critical_difference(1, 3), "n_methods"),
        (lambda: stats.paired_bootstrap([1], [0]), "two examples"),
        (lambda: stats.paired_bootstrap([1, 0], [0, 1], metric="f1"), "metric without references"),
        (lambda: stats.paired_bootstrap([1, 0], [0, 1], references=[0, 1]), "references without a metric"),
        (lambda: stats.paired_bootstrap([1, 0], [0, 1], metric="f1", references=[0]), "number of examples"),
        (lambda: stats.paired_bootstrap([1, 0], [0, 1], metric="bleurt", references=[0, 1]), "bleurt"),
        (lambda: stats.detectable_difference(100, 2), "does not determine"),
        (lambda: stats.detectable_difference(100, 2, base_rate=0.7, discordance=0.1), "only one"),
        (lambda: stats.detectable_difference(100, 2, base_rate=70), "70"),
        (lambda: stats.detectable_difference(100, 2, base_rate=0.7, common=2), "common"),
        (lambda: stats.detectable_difference(100, 1, base_rate=0.7, seed_std=0.1), "two seeds"),
        (lambda: stats.detectable_difference(100, 2, base_rate=0.7, power=0.01), "power"),
        (lambda: stats.verdict(math.nan, 0.1, 3), "difference"),
        (lambda: stats.verdict(0.1, 1.5, 3), "p: 1.5"),
    ],
)
def test_refusals_name_the_value(call: Callable[[], object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        call()
