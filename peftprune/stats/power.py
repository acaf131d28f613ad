"""The smallest difference that a study of a given size can find."""

import math
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr
from scipy.stats import chi2, norm

from peftprune.errors import UsageError
from peftprune.stats.paired import PairedDifference
from peftprune.stats.validation import Floats, at_least, share

_NODES = 150
"""Quantiles that represent a chi-squared distribution; 400 change the result by less than 0.2 %."""

_MOST_SEEDS = 1000


def detectable_difference(
    n_examples: int,
    n_seeds: int,
    *,
    base_rate: float | None = None,
    discordance: float | None = None,
    example_std: float | None = None,
    common: float | None = None,
    seed_std: float = 0.0,
    equivalence: bool = False,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Returns the smallest true difference that `paired_bootstrap` finds with the given power.

    With `equivalence`, it is the smallest margin δ within which methods without a difference are shown to be equivalent
    (see `verdict`): E[max(0, 2·Φ((δ − q)/√V) − 1)] equals the power.

    With N examples, S seeds, σ = `example_std`, c = `common`, τ = `seed_std`:

        V_ex = σ²·(c + (1 − c)/S)/N      noise of the examples in the mean difference
        V_int = σ²·(1 − c)/(S·N)         the part of it that also appears as a difference between seeds
        V = V_ex + τ²/S                  variance of the mean difference

    With X and X' independent χ² of S − 1 degrees of freedom, the test observes V̂ = (V_int + τ²/S)·X/(S − 1) between
    seeds and rejects where |D| exceeds q(V̂), the upper alpha/2 point of a normal value with the variance
    V_ex + max(0, V̂·(S − 1)/X' − V_int). The result is the δ at which E[Φ((δ − q)/√V) + Φ((−δ − q)/√V)] over V̂ equals
    the power. Without noise from seeds and with c = 1 it is the textbook (z_{1−alpha/2} + z_power)·σ/√N.

    Args:
        n_examples: in the evaluation set.
        n_seeds: pairs of runs. With one, `seed_std` must be 0, and the result concerns the two trained models.
        base_rate: accuracy p of both methods, whose errors are taken as independent: σ² = 2·p·(1 − p), the largest
            value unless they are designed to fail on different examples. For planning without further knowledge.
        discordance: share of examples on which exactly one method is right; σ² is that share.
        example_std: σ, for any metric that is a mean over examples; exactly one of the three is needed.
        common: share of σ² that all seeds have in common, in [0, 1]: 1 where all seeds fail on the same examples, so
            that more seeds do not compensate for a small evaluation set; 0 where they fail independently, which appears
            as a difference between seeds. None takes the least favourable share.
        seed_std: τ, standard deviation of the true difference over seeds.
        alpha: level of the test; divide it by the number of comparisons to account for Holm's correction.
        power: probability of finding the difference.

    The result is on the metric's scale, possibly beyond its range, and 0 without any noise. Raises UsageError for a
    number out of its range, or not exactly one of base_rate, discordance, example_std.
    """
    n, seeds = at_least("n_examples", n_examples, 2), at_least("n_seeds", n_seeds, 1)
    level, wanted = share("alpha", alpha), share("power", power)
    if wanted <= level:
        raise UsageError.of("power", power, f"is not above alpha, {alpha}", "Take 0.8")
    variance = _example_variance(base_rate, discordance, example_std) / n
    if common is not None and not 0 <= common <= 1:
        raise UsageError.of("common", common, "is not between 0 and 1", "None takes the least favourable share")
    if not seed_std >= 0 or (seeds == 1 and seed_std > 0):
        problem = "needs two seeds to show" if seed_std > 0 else "is negative"
        raise UsageError.of("seed_std", seed_std, problem, "Take 0 for a single seed")
    over_seeds, found = seed_std**2 / seeds, [0.0]
    for c in np.linspace(0.0, 1.0, 5).tolist() if common is None else [common]:
        over_examples, interaction = variance * (c + (1 - c) / seeds), variance * (1 - c) / seeds
        total = math.sqrt(over_examples + over_seeds)
        if total > 0:
            thresholds = _thresholds(over_examples, interaction, over_seeds, seeds - 1, level) / total
            found.append(total * _solve(thresholds, wanted, equivalence))
    return max(found)


def detectable_from(found: PairedDifference, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns `detectable_difference` for the sizes and the estimated noise of a result; raises as it does."""
    return detectable_difference(found.n_examples, found.n_seeds, **_noise(found), alpha=alpha, power=power)


def seeds_needed(found: PairedDifference, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns `seeds_for` the observed difference and noise, which few seeds estimate roughly.

    It is NaN for a difference of 0, and for one seed, which does not show how seeds vary.
    """
    if found.n_seeds == 1 or found.difference == 0:
        return math.nan
    return seeds_for(abs(found.difference), found.n_examples, **_noise(found), alpha=alpha, power=power)


def _noise(found: PairedDifference) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("example_std", "common", "seed_std")}


def seeds_for(
    size: float,
    n_examples: int,
    *,
    example_std: float,
    common: float,
    seed_std: float,
    equivalence: bool = False,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Returns how many seeds make `size` the smallest detectable difference, or with `equivalence` the margin.

    They are a whole number, at least 2; infinite above `_MOST_SEEDS` and where the noise of the examples, which seeds
    do not average out, is too large. Raises UsageError as `detectable_difference`.
    """
    one = example_std**2 / n_examples
    reached = (1 + share("power", power)) / 2 if equivalence else share("power", power)
    z = float(norm.ppf(1 - share("alpha", alpha) / 2) + norm.ppf(reached))
    room = (size / z) ** 2 - one * common
    noise: dict[str, Any] = {"example_std": example_std, "common": common, "seed_std": seed_std}
    noise |= {"equivalence": equivalence, "alpha": alpha, "power": power}
    # A normal test, the least that is needed; then the test itself.
    seeds = max(2, math.ceil((one * (1 - common) + seed_std**2) / room)) if room > 0 else math.inf
    while seeds <= _MOST_SEEDS and detectable_difference(n_examples, int(seeds), **noise) > size:
        seeds += max(1, seeds // 20)
    return float(seeds) if seeds <= _MOST_SEEDS else math.inf


def pairs_needed(mean: float, std: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns how many pairs find a true mean difference: (z_{1−alpha/2} + z_power)²·(std/mean)² + z²_{1−alpha/2}/2.

    The second term corrects a normal test to Student's (Guenther 1981), which `paired_permutation` is close to; it
    needs at least 1 + log2(1/alpha) pairs. The result is NaN for a mean of 0 or an unknown std.
    """
    if mean == 0 or math.isnan(std):
        return math.nan
    z, more = float(norm.ppf(1 - share("alpha", alpha) / 2)), float(norm.ppf(share("power", power)))
    return float(math.ceil(max(((z + more) * std / mean) ** 2 + z**2 / 2, 1 + math.log2(1 / alpha))))


def _example_variance(base_rate: float | None, discordance: float | None, example_std: float | None) -> float:
    given = {"base_rate": base_rate, "discordance": discordance, "example_std": example_std}
    known = {name: value for name, value in given.items() if value is not None}
    if len(known) != 1:
        cure = "Give base_rate, discordance or example_std, and only one of them"
        raise UsageError.of("example noise", known, "does not determine how much examples vary", cure)
    ((name, value),) = known.items()
    if not value >= 0 or (name != "example_std" and value > 1) or not math.isfinite(value):
        raise UsageError.of(name, value, "is out of range", "Rates lie in [0, 1], a standard deviation is at least 0")
    return {"base_rate": 2 * value * (1 - value), "discordance": value, "example_std": value**2}[name]


def _thresholds(over_examples: float, interaction: float, over_seeds: float, degrees: int, alpha: float) -> Floats:
    """Returns q(V̂) for equally likely V̂, by bisection of E[Φ(−q/√(V_ex + V₊))] = alpha/2."""
    normal = float(norm.ppf(1 - alpha / 2))
    if degrees == 0 or interaction + over_seeds == 0:
        return np.full(1, normal * math.sqrt(over_examples))
    nodes = np.asarray(chi2.ppf((np.arange(_NODES) + 0.5) / _NODES, degrees), dtype=float)
    estimated = (interaction + over_seeds) * nodes / degrees
    spread = np.sqrt(over_examples + np.maximum(0.0, estimated[:, None] * (degrees / nodes) - interaction))
    low, high = normal * spread.min(axis=1), normal * spread.max(axis=1)
    for _ in range(40):
        middle = (low + high) / 2
        exceeds = ndtr(-middle[:, None] / spread).mean(axis=1) > alpha / 2
        low, high = np.where(exceeds, middle, low), np.where(exceeds, high, middle)
    return high


def _solve(thresholds: Floats, power: float, equivalence: bool) -> float:
    """Returns the shift, in standard deviations, at which the power is reached."""

    def missing(shift: float) -> Any:
        if equivalence:
            return np.maximum(0.0, 2 * ndtr(shift - thresholds) - 1).mean() - power
        return (ndtr(shift - thresholds) + ndtr(-shift - thresholds)).mean() - power

    top = float(thresholds.max()) + 10.0
    return 0.0 if missing(0.0) >= 0 else float(brentq(missing, 0.0, top, xtol=1e-9))
