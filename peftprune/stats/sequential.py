"""Looks at a study before it ends, with one chance of error over all of them.

A study in rounds of n_1 < ... < n_K seeds is looked at after each. The chance α of any false verdict is spent along the
information t_k = n_k/n_K by α(t) = 4·Φ(−z/√t), z the upper α/4 point: O'Brien and Fleming's bounds (1979) as Lan and
DeMets' (1983) two-sided spending function. The nominal level of look k is the one that spends α(t_k) − α(t_{k−1}) under
a Brownian motion: the normal statistics of looks j < k correlate by √(t_j/t_k).

The overall p of a look is the smallest α at which its p is significant. Holm's procedure on the overall p of several
methods is the closed group-sequential test of Maurer and Bretz (2013), without their return to earlier looks: a look at
any time, at different times for different methods, keeps the chance of any false verdict.

Two things are approximate. The levels are for normal statistics, and are used for p of a bootstrap whose statistics
resemble Student's t (Jennison & Turnbull 2000). The looks share their examples, which makes them more alike than
√(t_j/t_k) says, so that the levels are stricter than needed.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from peftprune.stats.validation import Floats

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
"""Of the density between both bounds; 160 nodes change no level by more than 1e-8 of it."""


class Look(NamedTuple):
    """Look `number`, from 1, of a design with the information `fractions`; 0 before the first look.

    The one look of a fixed design, `Look()`, changes no level and no p.
    """

    number: int = 1
    fractions: tuple[float, ...] = (1.0,)

    def nominal(self, alpha: float) -> float:
        """Returns the level at which this look tests so that all looks together have the level `alpha`; 0 for none."""
        if len(self.fractions) == 1 or not self.number:
            return alpha if self.number else 0.0
        return levels(alpha, self.fractions[: self.number])[-1]

    @lru_cache(maxsize=4096)  # noqa: B019
    def overall(self, p: float) -> float:
        """Returns the smallest level of all looks together at which the p of this one is significant, at most 1."""
        if len(self.fractions) == 1 and self.number:
            return p
        if self.nominal(1.0) <= p:
            return 1.0
        return math.exp(brentq(lambda log: self.nominal(math.exp(log)) - p, math.log(p), 0.0, xtol=1e-9))


@lru_cache(maxsize=256)
def levels(alpha: float, fractions: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the two-sided nominal levels of looks at ascending information fractions up to 1."""
    spent = [4 * ndtr(ndtri(alpha / 4) / math.sqrt(t)) for t in fractions]
    bounds = [-ndtri(spent[0] / 2) * math.sqrt(fractions[0])]
    x = _NODES * bounds[0]
    # The sub-density of paths that have crossed no bound, times the weights of the quadrature.
    density = np.exp(-(x**2) / (2 * fractions[0])) / math.sqrt(2 * math.pi * fractions[0]) * _WEIGHTS * bounds[0]
    for k in range(1, len(fractions)):
        step, share = math.sqrt(fractions[k] - fractions[k - 1]), spent[k] - spent[k - 1]
        # The paths that cross a bound at 0 are all that are left; near α = 1 they may be too few.
        given = (x, density, step, share)
        bounds.append(brentq(_missing, 0.0, 40.0, given) if _missing(0.0, *given) > 0 else 0.0)
        y = _NODES * bounds[k]
        kernel = np.exp(-(((y[:, None] - x) / step) ** 2) / 2) / (math.sqrt(2 * math.pi) * step)
        x, density = y, kernel @ density * _WEIGHTS * bounds[k]
    return tuple(float(2 * ndtr(-b / math.sqrt(t))) for b, t in zip(bounds, fractions, strict=True))


def _missing(bound: float, x: Floats, density: Floats, step: float, share: float) -> float:
    """Returns the chance of crossing ±bound from the density at x by a step of this deviation, less the share."""
    return float(2 * density @ ndtr((x - bound) / step) - share)
