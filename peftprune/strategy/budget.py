"""Budgets: limits on parameters and on the length of training, solved into integers before training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from peftprune.errors import RunError, UsageError
from peftprune.strategy.sites import SiteShape

Count = Literal["stored", "nonzero"]
_INTEGERS = {"rank", "params", "steps", "samples"}


@dataclass(frozen=True)
class Budget:
    """The limits of each arm. Give one of `rank`, `params`, `fraction`, and at most one of the training fields.

    Attributes:
        rank: the adapter parameters that uniform LoRA of this rank has on the same sites; at least 1.
        params: a number of adapter parameters; at least 1.
        fraction: a share of the base model's parameters, in (0, 1).
        count: whether "stored" parameters are counted (tied tensors once) or only "nonzero" ones.
        epochs: passes over the training data, above 0.
        steps: optimizer steps; at least 1.
        samples: training examples seen, repeats counted; at least 1.
    """

    rank: int | None = None
    params: int | None = None
    fraction: float | None = None
    count: Count = "stored"
    epochs: float | None = None
    steps: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        sizes = {n: getattr(self, n) for n in ("rank", "params", "fraction") if getattr(self, n) is not None}
        lengths = {n: getattr(self, n) for n in ("epochs", "steps", "samples") if getattr(self, n) is not None}
        if len(sizes) != 1:
            cure = "Write rank=8, for example; in a YAML list, put quotes around a budget with a comma"
            raise UsageError.of("budget", sizes or lengths or "", "must name one of rank, params and fraction", cure)
        if len(lengths) > 1:
            raise UsageError.of("budget", lengths, "names more than one length of training", "Keep one of them")
        for name, value in (sizes | lengths).items():
            if name in _INTEGERS and (not isinstance(value, int) or isinstance(value, bool)):
                raise UsageError.of(f"budget.{name}", value, "is not an integer", "Give a whole number")
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 2**63:
                problem = "is not a number above 0 and below 2^63"
                raise UsageError.of(f"budget.{name}", value, problem, f"Give {name} above 0")
        if self.fraction is not None and self.fraction >= 1:
            raise UsageError.of("budget.fraction", self.fraction, "is not below 1", "Write 0.003 for 0.3 percent")
        if self.count not in ("stored", "nonzero"):
            raise UsageError.of("budget.count", self.count, "is unknown", 'Use "stored" or "nonzero"')

    @property
    def label(self) -> str:
        """The budget's name in tables, which is the text that `parse` reads."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {k: v for k, v in named.items() if v is not None and (k, v) != ("count", "stored")}
        return ",".join(f"{k}={int(v) if isinstance(v, float) and v.is_integer() else v}" for k, v in given.items())

    @property
    def has_length(self) -> bool:
        """True where the budget sets the length of training."""
        return (self.epochs, self.steps, self.samples) != (None, None, None)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parses `rank=8`, `params=300000,count=nonzero` or `fraction=0.003,epochs=3`.

        Raises UsageError for anything else, naming the part that cannot be read.
        """
        values: dict[str, Any] = {}
        names = [f.name for f in fields(cls)]
        for part in filter(None, (p.strip() for p in text.split(","))):
            key, equals, value = (s.strip() for s in part.partition("="))
            if not equals or key not in names:
                cure = f"Names: {', '.join(names)}; e.g. rank=8"
                raise UsageError.of("budget", part, "is not NAME=VALUE with a known name", cure)
            if key in values:
                raise UsageError.of("budget", text, f"names {key} twice", "Keep one of them")
            values[key] = value if key == "count" else _number(key, value)
        return cls(**values)

    def parameters(self, sites: Sequence[SiteShape], base_parameters: int) -> int:
        """Returns the adapter parameters that this budget allows on these sites.

        A `fraction` is of `base_parameters`, which leave out the head. Raises UsageError when a rank exceeds a site's
        smaller side, or not every site can have rank 1.
        """
        if self.rank is not None:
            small = min(sites, key=lambda s: s.max_rank)
            if self.rank > small.max_rank:
                problem = f"is above the smaller side of {small.name} ({small.d_out} × {small.d_in})"
                raise UsageError.of("budget.rank", self.rank, problem, f"Give a rank from 1 to {small.max_rank}")
            return self.rank * sum(s.unit_cost for s in sites)
        total = self.params if self.params is not None else int((self.fraction or 0) * base_parameters)
        least = sum(s.unit_cost for s in sites)
        if total < least:
            field, value = ("params", self.params) if self.params is not None else ("fraction", self.fraction)
            problem = f"allows {total:,} parameters, too few for one rank at each of the {len(sites)} sites"
            cure = f"Give at least {least:,} parameters, or name fewer target_modules"
            raise UsageError.of(f"budget.{field}", value, problem, cure)
        return total

    def total_steps(self, num_examples: int, batch_size: int) -> int:
        """Returns the optimizer steps of the run: one step per batch, a last smaller batch included."""
        per_epoch = -(-num_examples // batch_size)
        if self.steps is not None:
            return self.steps
        if self.samples is not None:
            return max(1, self.samples // batch_size)
        assert self.epochs is not None
        return max(1, round(self.epochs * per_epoch))


def _number(key: str, text: str) -> int | float:
    pattern = r"\d+(_\d+)*" if key in _INTEGERS else r"\d*\.?\d+(e-?\d+)?"
    if not re.fullmatch(rf"-?{pattern}", text) or len(text) > 4_000:  # Python reads no longer numbers
        kind, example = ("a whole number", 8) if key in _INTEGERS else ("a number", 0.003)
        raise UsageError.of(f"budget.{key}", text, f"is not {kind}", f"Write {key}={example}, for example")
    return int(text) if key in _INTEGERS else float(text)


def parse_budget(budget: Budget | str) -> Budget | Literal["paper"]:
    """Returns the budget that a text stands for; "paper" stays a text."""
    if isinstance(budget, Budget):
        return budget
    if not isinstance(budget, str):
        raise UsageError.of("budget", budget, "is neither text nor a Budget", "Give rank=8, for example")
    return "paper" if budget.strip() == "paper" else Budget.parse(budget)


@dataclass(frozen=True)
class Outcome:
    """The final ranks of another arm of the same task, budget and seed, for methods with `depends_on`.

    Attributes:
        label: that arm's label.
        ranks: site to final rank. Sites that share one adapter count once: the first holds the rank, the others 0.
        seed: the seed of both arms, for draws that the allocation needs.
        shared: groups of sites that share one adapter, the first of them first.
    """

    label: str
    ranks: Mapping[str, int]
    seed: int
    shared: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Outcome:
        """Reads it from the contents of an arm's `result.json`. Raises RunError when that arm has no ranks."""
        ranks: dict[str, int] = {}
        for row in result["allocation"]:
            counted = any(ranks.get(other) for other in row["shared_with"])
            ranks[row["site"]] = 0 if counted else row["rank"]
        if not any(ranks.values()):
            raise RunError(f"{result['label']}: has no ranks that another method can use. Depend on another one")
        rows = result["allocation"]
        shared = [(r["site"], *r["shared_with"]) for r in rows if r["shared_with"] and ranks[r["site"]]]
        return cls(result["label"], ranks, result["seed"], tuple(shared))


@dataclass(frozen=True)
class ArmBudget:
    """One arm's budget in integers, as `Method.spec` and `Method.phases` receive it.

    Attributes:
        params: adapter parameters allowed at the end.
        count: what is counted, "stored" or "nonzero".
        total_steps: optimizer steps, forward-only passes included.
        num_examples: size of the training set.
        batch_size: examples per optimizer step.
        paper: True under `budget="paper"`: the method's published ranks hold and `params` is only a reference.
        outcome: that of the arm that this one depends on, once it has run; otherwise None.
    """

    params: int
    total_steps: int
    num_examples: int
    batch_size: int
    count: Count = "stored"
    paper: bool = False
    outcome: Outcome | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the budget as plain values, without the outcome of another arm."""
        return {name: value for name, value in vars(self).items() if name != "outcome"}

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.batch_size)

    def solve(
        self,
        sites: Sequence[SiteShape],
        weights: Mapping[str, float] | None = None,
        *,
        unit_costs: Mapping[str, float] | None = None,
    ) -> dict[str, int]:
        """Returns ranks in proportion to `weights` (default: all equal) that meet the budget on these sites."""
        return solve_ranks(sites, self.params, weights, unit_costs=unit_costs)

    def scaled(self, params: int) -> ArmBudget:
        """Returns the same budget with another number of parameters."""
        return replace(self, params=params)


def solve_ranks(
    sites: Sequence[SiteShape],
    params: int,
    weights: Mapping[str, float] | None = None,
    *,
    unit_costs: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Returns integer ranks in proportion to `weights`, all equal by default, whose cost meets `params`.

    The real-valued targets are floored, with a minimum of 1; then the largest remainders go up by one, ties in site
    order, until less than one unit is left. No rank exceeds min(d_in, d_out). `unit_costs` holds the cost of one rank
    where it is not d_in + d_out (sparse tensors). Raises UsageError when one rank at each site already costs more.
    """
    if not sites:
        raise UsageError.of("sites", [], "are empty", "Keep at least one site")
    cost = {s.name: (unit_costs or {}).get(s.name, s.unit_cost) for s in sites}
    cap = {s.name: s.max_rank for s in sites}
    weight = {s.name: 1.0 if weights is None else float(weights[s.name]) for s in sites}
    if sum(cost.values()) > params:
        cure = f"Allow at least {int(sum(cost.values())):,} parameters, or name fewer target_modules"
        raise UsageError.of("budget", params, f"is too small for one rank at each of {len(sites)} sites", cure)
    scale = _fill_level(weight, cost, cap, params)
    target = {n: min(weight[n] * scale, cap[n]) for n in weight}
    # A target that is whole up to rounding must not lose a unit to its last bit.
    ranks = {n: min(max(1, int(t + 1e-9)), cap[n]) for n, t in target.items()}
    left = params - sum(ranks[n] * cost[n] for n in ranks)
    while left < 0:
        # The minimum of 1 overspent: take back where the rank lies furthest above its target.
        name = max((n for n in ranks if ranks[n] > 1), key=lambda n: round(ranks[n] - target[n], 9))
        ranks[name] -= 1
        left += cost[name]
    while True:
        # Rounded, so that equal remainders stay equal whatever their last bits.
        order = sorted(ranks, key=lambda n: round(ranks[n] - target[n], 9))
        fitting = next((n for n in order if cost[n] <= left and ranks[n] < cap[n]), None)
        if fitting is None:
            return ranks
        ranks[fitting] += 1
        left -= cost[fitting]


def _fill_level(weight: Mapping[str, float], cost: Mapping[str, float], cap: Mapping[str, int], params: float) -> float:
    """Returns the factor on the weights at which the capped targets cost `params`, or fill every site."""
    free = list(weight)
    left = float(params)
    while free:
        scale = left / sum(weight[n] * cost[n] for n in free)
        full = [n for n in free if weight[n] * scale > cap[n]]
        if not full:
            return scale
        left -= sum(cap[n] * cost[n] for n in full)
        free = [n for n in free if n not in full]
    return max(cap[n] / weight[n] for n in weight)


def verify(spent: int, budget: ArmBudget, headroom: float | None) -> None:
    """Checks after training that the budget is met: not overspent, and with no room for one more unit of rank.

    `headroom` is the cost of the cheapest unit of rank that could still be added, or None where every site is full.
    Under `budget="paper"` nothing is checked. Raises RunError on a miss.
    """
    if budget.paper:
        return
    if spent > budget.params:
        raise RunError(
            f"budget: the adapters hold {spent:,} {budget.count} parameters after training, {spent - budget.params:,} "
            f"above the {budget.params:,} allowed. The strategy's last plan must cut to the budget"
        )
    if headroom is not None and budget.params - spent >= headroom:
        raise RunError(
            f"budget: the adapters hold {spent:,} {budget.count} parameters after training and {budget.params:,} are "
            f"allowed; one more rank ({headroom:,.0f} parameters) would fit. Spend the whole budget with budget.solve"
        )
