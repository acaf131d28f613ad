"""How a PEFT model starts under a method: its sites, and their starting ranks, gates and values."""

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch.optim import Optimizer

from peftprune.adapters import surgery
from peftprune.adapters.inject import initialise
from peftprune.callback.attach import attach, base_parameters, is_fresh
from peftprune.errors import UsageError
from peftprune.methods.request import parse
from peftprune.strategy import ArmBudget, Budget, PruningPlan, RankPruningStrategy, parse_budget
from peftprune.strategy.rng import generator
from peftprune.strategy.sites import SiteSet, rank_cost
from peftprune.strategy.spec import AdapterSpec, check_spec

PREPARED = "peftprune_prepared"
"""The attribute of a model that holds its `Prepared`."""
_UNKNOWN_LENGTH = 10**6
"""Steps assumed while the length of training is unknown; every phase has some."""


@dataclass(frozen=True)
class Prepared:
    """What a model was prepared for: the request ("method", "options", "budget", "seed") and the starting spec."""

    request: Mapping[str, Any]
    spec: AdapterSpec


@dataclass(frozen=True)
class Start:
    """The sites of a model and how a method starts there.

    `spec` holds the adapters that the method starts with; the user's own `ranks` may take the place of its ranks.
    `base_parameters` counts the frozen ones, and `prepared` is None for a model that `prepare` did not change.
    """

    sites: SiteSet
    spec: AdapterSpec
    ranks: Mapping[str, int]
    base_parameters: int
    prepared: Prepared | None

    @property
    def changes_model(self) -> bool:
        spec = self.spec
        frozen = any(not group.trained for group in spec.groups.values())
        scaled = spec.scaling is not None or bool(spec.relative_scaling)
        values = bool(spec.gate != "none" or spec.initial or spec.initial_std or frozen or scaled)
        return self.prepared is None and (values or dict(self.ranks) != self.sites.ranks)


def build_strategy(method: Any, options: Mapping[str, Any]) -> RankPruningStrategy:
    """Returns a strategy from a name (with options in brackets, as on the command line), a class or an object.

    Raises UsageError for anything else, a baseline, or a method that needs another arm's outcome.
    """
    found = parse([method])
    if len(found) != 1:
        raise UsageError.of("method", method, "names several", "Name one method")
    if options and found[0].instance is not None:
        raise UsageError.of("options", dict(options), "came with a strategy object", "Give them to the strategy")
    built = found[0].cls(**{**found[0].options, **options}) if options else found[0].build()
    if not isinstance(built, RankPruningStrategy):
        problem = "is a baseline, which makes a model of its own"
    elif built.depends_on is not None:
        problem = f"needs the outcome of {built.depends_on}"
    else:
        return built
    raise UsageError.of("method", built.name, problem, "Run it with peftprune.compare")


def check_seed(seed: Any) -> int:
    """Returns the seed; refuses what `compare` would refuse."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) < 2**32:
        raise UsageError.of("seed", seed, "is not a whole number from 0 below 2^32", "Give 0, for example")
    return int(seed)


def parameter_budget(budget: Budget | str) -> Budget:
    """Returns the budget; refuses "paper", which is not a number of parameters."""
    if isinstance(parsed := parse_budget(budget), str):
        raise UsageError.of("budget", parsed, "is not a number of parameters", "Give rank=8, for example")
    return parsed


def provisional_budget(budget: Budget, sites: SiteSet, base: int, steps: int | None = None) -> ArmBudget:
    """Returns the budget before the length of training is known: enough for ranks, not for phases.

    `base` is the number of parameters of the base model, `steps` the number of optimizer steps if it is known.
    """
    total = steps or budget.steps or _UNKNOWN_LENGTH
    return ArmBudget(budget.parameters(sites.shapes, base), total, num_examples=total, batch_size=1, count=budget.count)


def final_budget(
    budget: Budget, strategy: RankPruningStrategy, start: Start, args: Any, total: int, data: Any
) -> ArmBudget:
    """Returns the budget in integers, once the trainer's arguments, optimizer steps and training data are known.

    Raises UsageError if the length of training contradicts the budget or changes the starting ranks.
    """
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    examples = len(data) if isinstance(data, Sized) else total * batch
    if budget.has_length and (steps := budget.total_steps(examples, batch)) != total:
        problem = f"means {steps} steps, and the trainer makes {total}"
        raise UsageError.of("budget", budget.label, problem, "Leave the length of training to the trainer")
    params = budget.parameters(start.sites.shapes, start.base_parameters)
    found = ArmBudget(params, total, examples, batch, budget.count)
    if strategy.spec(start.sites.shapes, found).ranks != start.spec.ranks:
        problem, cure = "starts at ranks that depend on the length of training", "Give it when the trainer is made"
        raise UsageError.of("method", strategy.name, problem, f"{cure}: max_steps={total}")
    return found


def solve(model: Any, strategy: RankPruningStrategy, budget: Budget, seed: int | None, steps: int) -> Start:
    """Returns how a method starts on a PEFT LoRA model, whose tensors are not changed.

    A `seed` of None accepts any seed that the model was prepared with; `steps` is 0 while unknown. Raises UsageError if
    the model cannot be pruned, or was prepared for another request.
    """
    sites, base = attach(model), base_parameters(model)
    prepared: Prepared | None = getattr(model, PREPARED, None)
    if prepared is not None:
        own = {"method": strategy.name, "options": strategy.config, "budget": budget}
        for name, value in (own if seed is None else own | {"seed": seed}).items():
            if (known := prepared.request[name]) != value:
                raise UsageError.of(name, value, f"is not what the model was prepared for ({known})", "Give the same")
        return Start(sites, prepared.spec, sites.ranks, base, prepared)
    provisional = provisional_budget(budget, sites, base, steps)
    spec = strategy.spec(sites.shapes, provisional)
    check_spec(spec, sites.shapes)
    return Start(sites, spec, _ranks(strategy, spec, sites, provisional), base, None)


def _ranks(strategy: RankPruningStrategy, spec: AdapterSpec, sites: SiteSet, budget: ArmBudget) -> Mapping[str, int]:
    """Returns the user's ranks if the method starts above the budget and its options set no others, else the spec's."""
    final = spec.final_ranks
    if final is None or rank_cost(spec.ranks, sites.shapes) <= rank_cost(final, sites.shapes):
        return spec.ranks
    plain = type(strategy)()
    if plain.config != strategy.config and plain.spec(sites.shapes, budget).ranks != spec.ranks:
        return spec.ranks
    own = sites.ranks
    larger = f"Make the adapter with a larger r ({strategy.name} itself would start at {max(spec.ranks.values())})"
    if not spec.decided_in_training:
        for name, rank in own.items():
            if rank < final[name]:
                raise UsageError.of("r", rank, f"at {name} is below the budget's rank there, {final[name]}", larger)
    if (held := rank_cost(own, sites.shapes)) <= budget.params:
        least, most = min(own.values()), max(own.values())
        problem = f"leaves {strategy.name} nothing to cut: {held:,} parameters, and the budget is {budget.params:,}"
        raise UsageError.of("r", least if least == most else f"{least} to {most}", problem, larger)
    return own


def begin(
    sites: SiteSet,
    spec: AdapterSpec,
    ranks: Mapping[str, int],
    seed: int,
    *,
    draw_A: bool = False,
    optimizer: Optimizer | None = None,
) -> None:
    """Resizes the sites of a model that is not wrapped yet, and gives them the gates, values and scaling of a spec.

    The model's function does not change; UsageError is raised where it would, since the adapter has been trained
    before. `draw_A` draws every A anew, not only where the spec defines values. Sites without a rank are removed from
    an `optimizer` that exists already.
    """
    own = sites.ranks
    smaller = {n: range(r) for n, r in ranks.items() if 0 < r < own[n]}
    dropped = frozenset(n for n, r in ranks.items() if r == 0)
    if smaller or dropped or spec.initial or spec.initial_std:
        require_fresh(sites, "the method starts at other ranks or values")
    plan = PruningPlan(keep=smaller, drop=dropped, grow={n: r - own[n] for n, r in ranks.items() if r > own[n]})
    surgery.apply_plan(sites, plan, optimizer=optimizer, rng=generator(seed, "init", "grown"))
    base = {n: sites[n].scaling if spec.scaling is None else spec.scaling for n, r in ranks.items() if r > 0}
    surgery.set_scaling(sites, {n: factor * spec.relative_scaling.get(n, 1.0) for n, factor in base.items()})
    initialise(sites, spec, seed, draw_A=draw_A)


def require_fresh(sites: SiteSet, reason: str) -> None:
    """Refuses an adapter that has been trained before, for a reason that the message gives."""
    if not is_fresh(sites):
        problem = f"has been trained before, and {reason}"
        raise UsageError.of("model", "adapter", problem, "Start from a fresh adapter, whose B is zero")
