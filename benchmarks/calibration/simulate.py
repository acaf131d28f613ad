"""Simulated predictions of two methods, seeds × examples, whose true difference is known.

An example has a difficulty that all models share. A model's quality is its method's, t, plus d·g; g ~ N(0, 1) is drawn
for each seed and method, so that the difference of two methods varies between seeds. The true value of a method is the
mean over g of the metric on all possible examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from peftprune.stats.metric_sums import BLEU, F1, MATTHEWS, MEAN, PEARSON, SumMetric
from peftprune.stats.validation import Floats

_POSITIVE = 0.68
"""Share of class 1, as in MRPC."""
_SHARED = 0.5
"""Share of the examples' noise that all models have in common."""
_NODES, _WEIGHTS = hermegauss(40)


@dataclass(frozen=True)
class Simulated:
    """A metric and the models that are scored with it.

    Attributes:
        sums: the metric.
        base: true value of the baseline.
        value: quality of a model to the metric on all possible examples.
        draw: (qualities (models,), examples, generator) to predictions (models, n) or (models, n, 10), and references.
    """

    sums: SumMetric
    base: float
    value: Callable[[Floats], Floats]
    draw: Callable[[Floats, int, np.random.Generator], tuple[Floats, Floats]]

    def quality(self, truth: float, deviation: float) -> float:
        """Returns the t at which the mean over g of the metric is `truth`."""
        return float(brentq(lambda t: self._mean(t, deviation) - truth, -4.0, 6.0, xtol=1e-12))

    def scale(self, deviation: float) -> float:
        """Returns the deviation of t that makes the metric deviate by about `deviation` between seeds."""
        t = self.quality(self.base, 0.0)
        slope = (self.value(np.array(t + 1e-4)) - self.value(np.array(t - 1e-4))) / 2e-4
        return float(deviation / slope)

    def _mean(self, t: float, deviation: float) -> float:
        return float(_WEIGHTS @ self.value(t + deviation * _NODES)) / math.sqrt(2 * math.pi)


def _right(quality: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Returns whether each model is right on each example, with the probability Φ(quality)."""
    noise = math.sqrt(_SHARED) * rng.standard_normal((1, n))
    noise = noise + math.sqrt(1 - _SHARED) * rng.standard_normal((len(quality), n))
    return (noise < quality[:, None]).astype(float)


def _draw_classes(quality: Floats, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    truth = (rng.random(n) < _POSITIVE).astype(float)
    right = _right(quality, n, rng)
    return right * truth + (1 - right) * (1 - truth), truth


def _f1(quality: Floats) -> Floats:
    right = ndtr(quality)
    return 2 * _POSITIVE * right / (2 * _POSITIVE * right + 1 - right)


def _matthews(quality: Floats) -> Floats:
    right, share = ndtr(quality), _POSITIVE
    predicted = share * right + (1 - share) * (1 - right)
    return (share * right - share * predicted) / np.sqrt(share * (1 - share) * predicted * (1 - predicted))


def _draw_numbers(quality: Floats, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    truth, correlation = rng.standard_normal(n), np.tanh(quality)[:, None]
    noise = math.sqrt(_SHARED) * rng.standard_normal((1, n))
    noise = noise + math.sqrt(1 - _SHARED) * rng.standard_normal((len(quality), n))
    return correlation * truth + np.sqrt(1 - correlation**2) * noise, truth


_ORDERS = ndtri(np.array([0.6, 0.35, 0.22, 0.14]))
"""n-grams that match, as in translations of middling quality."""
_EXAMPLE = 0.5
"""Deviation of an example's difficulty, in generation."""


def _bleu(quality: Floats) -> Floats:
    matching = ndtr((_ORDERS + np.asarray(quality)[..., None]) / math.sqrt(1 + _EXAMPLE**2))
    return np.exp(np.log(matching).mean(axis=-1))


def _draw_texts(quality: Floats, n: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    length = rng.integers(8, 25, n)
    totals = length[:, None] - np.arange(4)
    chance = ndtr(_ORDERS + quality[:, None, None] + _EXAMPLE * rng.standard_normal((1, n, 1)))
    matching = rng.binomial(np.broadcast_to(totals, chance.shape), chance)
    both = np.broadcast_to(np.stack([length, length], axis=1), (len(quality), n, 2))
    every = np.broadcast_to(totals, matching.shape)
    return np.concatenate([both, matching, every], axis=2).astype(float), np.zeros(n)


METRICS = {
    # Accuracy is the mean of right answers.
    "accuracy": Simulated(MEAN, 0.8, ndtr, lambda q, n, rng: (_right(q, n, rng), np.zeros(n))),
    "f1": Simulated(F1, 0.8, _f1, _draw_classes),
    "matthews": Simulated(MATTHEWS, 0.5, _matthews, _draw_classes),
    "pearson": Simulated(PEARSON, 0.8, np.tanh, _draw_numbers),
    "bleu": Simulated(BLEU, 0.25, _bleu, _draw_texts),
}
