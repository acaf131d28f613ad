"""How somebody else's PEFT model starts: at which ranks, with which gates and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel, TaskType
from torch.optim import Optimizer

from peftprune.adapters import surgery
from peftprune.adapters.initial import initial_values
from peftprune.callback.attach import attach, base_parameters, is_fresh
from peftprune.errors import UsageError
from peftprune.methods.request import parse
from peftprune.models.layers import head_modules
from peftprune.models.load import initialise_head
from peftprune.strategy.budget import ArmBudget, Budget, parse_budget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.rng import generator
from peftprune.strategy.sites import SiteSet, SiteShape
from peftprune.strategy.spec import AdapterSpec, ParameterGroup, check_spec
from peftprune.training.cpu import make_fast

MARK = "peftprune_start"
"""The attribute under which a prepared model carries its `Start`."""
_LONG = 10**6
"""Steps that stand in for a length that is not known yet: every phase has some."""


@dataclass(frozen=True)
class Start:
    """What `prepare` did to a model, so that the callback goes on from there.

    Attributes:
        method: the method's name.
        config: its options.
        budget: the budget.
        seed: the seed.
        spec: the adapters it starts with.
    """

    method: str
    config: Any
    budget: Budget
    seed: int
    spec: AdapterSpec


def prepare(
    model: PeftModel,
    method: Any,
    budget: Budget | str,
    *,
    seed: int = 0,
    scaling: float = 2.0,
    **options: Any,
) -> PeftModel:
    """Make a fresh PEFT LoRA model start as the arm of this seed does in `compare`.

    Ranks are the method's own starting ranks, every A and the head are drawn from the seed, B is zero, and `scaling`
    is the factor on B A at every site. On a CPU, dropout masks are drawn as `compare` draws them. With `sampler` for
    the data and `PruningCallback(..., schedule="restart")` over a constant schedule, a plain Trainer then ends with the
    adapter that `compare` ends with: bit for bit where the rest is the same too (float32, optimizer, loss, batch size,
    one micro-batch per step), to float tolerance otherwise.

    Args:
        model: with a fresh LoRA adapter on the same sites; its own ranks do not matter. It is changed in place.
        method: as for `PruningCallback`.
        budget: as for `PruningCallback`.
        seed: the arm's seed; the callback takes it from the model.
        scaling: above 0; `compare` has 2.0.
        options: the method's options.

    Returns:
        The same model.

    Raises:
        UsageError: where it is no fresh PEFT LoRA model, or does not train a module of its head.
    """
    strategy, parsed = strategy_of(method, options), checked_budget(budget)
    if not scaling > 0:
        raise UsageError.of("scaling", scaling, "is not positive", "Give 2.0, for example")
    sites = attach(model)
    _require_fresh(sites, "prepare draws its values anew")
    spec = strategy.spec(sites.shapes, provisional(parsed, sites, base_parameters(model)))
    check_spec(spec, sites.shapes)
    for site in sites.values():
        site._layer.scaling[site._adapter] = scaling
    begin(sites, spec, spec.ranks, seed, draw_A=True)
    _draw_head(model, seed)
    if next(model.parameters()).device.type == "cpu":
        make_fast(model, seed)
    setattr(model, MARK, Start(strategy.name, strategy.config, parsed, seed, spec))
    return model


def strategy_of(method: Any, options: Mapping[str, Any]) -> RankPruningStrategy:
    """A fresh strategy from a name (with options in brackets, as on the command line), a class or an object.

    Raises:
        UsageError: for anything else, and for what is no rank pruning or needs another arm's outcome.
    """
    found = parse([method])
    if len(found) != 1:
        raise UsageError.of("method", method, "names several", "Name one method")
    if options and found[0].instance is not None:
        raise UsageError.of("options", dict(options), "came with a strategy object", "Give them to the strategy")
    built = found[0].cls(**{**found[0].options, **options}) if options else found[0].build()
    if not isinstance(built, RankPruningStrategy):
        raise UsageError.of(
            "method", built.name, "is a baseline, which makes a model of its own", "Run it with peftprune.compare"
        )
    if built.depends_on is not None:
        raise UsageError.of(
            "method", built.name, f"needs the outcome of {built.depends_on}", "Run it with peftprune.compare"
        )
    return built


def checked_budget(budget: Budget | str) -> Budget:
    """The budget, from its text where it is one."""
    parsed = parse_budget(budget)
    if isinstance(parsed, str):
        raise UsageError.of("budget", parsed, "is not a number of parameters", "Give rank=8, for example")
    return parsed


def provisional(budget: Budget, sites: SiteSet, base: int, steps: int | None = None) -> ArmBudget:
    """The budget before the length of training is known: enough for ranks, not for phases.

    Args:
        budget: what may be spent.
        sites: the sites.
        base: parameters of the base model.
        steps: optimizer steps, if they are known already.
    """
    total = steps or budget.steps or _LONG
    params = budget.parameters(sites.shapes, base)
    return ArmBudget(params, total, num_examples=total, batch_size=1, count=budget.count)


def starting_ranks(
    strategy: RankPruningStrategy, spec: AdapterSpec, sites: SiteSet, budget: ArmBudget
) -> Mapping[str, int]:
    """The user's own ranks where the method starts above the budget and comes down to it, else the method's.

    A method that comes down by itself can start from anything above the budget, and takes the adapter as it was made,
    unless its options name other starting ranks than its defaults do.

    Raises:
        UsageError: where the user's ranks are too small to come down from.
    """
    final = spec.final_ranks
    if final is None or _cost(spec.ranks, sites.shapes) <= _cost(final, sites.shapes):
        return spec.ranks
    plain = type(strategy)()
    if plain.config != strategy.config and plain.spec(sites.shapes, budget).ranks != spec.ranks:
        return spec.ranks
    own = sites.ranks
    least, most = min(own.values()), max(own.values())
    shown = least if least == most else f"{least} to {most}"
    larger = f"Make the adapter with a larger r ({strategy.name} itself would start at {max(spec.ranks.values())})"
    if not spec.decided_in_training:
        for name, rank in own.items():
            if rank < final[name]:
                raise UsageError.of("r", rank, f"at {name} is below the budget's rank there, {final[name]}", larger)
    if _cost(own, sites.shapes) <= budget.params:
        held = _cost(own, sites.shapes)
        problem = f"leaves {strategy.name} nothing to cut: {held:,} parameters, and the budget is {budget.params:,}"
        raise UsageError.of("r", shown, problem, larger)
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
    """Resize the sites and give them the gates and values that the spec asks for. The function does not change.

    Args:
        sites: of a model that is not wrapped yet.
        spec: what the method asks for.
        ranks: site to starting rank.
        seed: for what is drawn.
        draw_A: draw every A anew, not only where the spec says so.
        optimizer: one that exists already; it forgets the sites that get no rank.

    Raises:
        UsageError: where that is not possible, since the adapter has been trained before.
    """
    own = sites.ranks
    smaller = {n: list(range(r)) for n, r in ranks.items() if 0 < r < own[n]}
    dropped = frozenset(n for n, r in ranks.items() if r == 0)
    if smaller or dropped or spec.initial or spec.initial_std:
        _require_fresh(sites, "the method starts at other ranks or values")
    grown = {n: r - own[n] for n, r in ranks.items() if r > own[n]}
    plan = PruningPlan(keep=smaller, drop=dropped, grow=grown)
    surgery.apply_plan(sites, plan, optimizer=optimizer, rng=generator(seed, "init", "grown"))
    held = {n: r for n, r in ranks.items() if r > 0}
    for name in held:
        layer, adapter = sites[name]._layer, sites[name]._adapter
        factor = sites[name].scaling if spec.scaling is None else spec.scaling
        layer.scaling[adapter] = factor * spec.relative_scaling.get(name, 1.0)
    if spec.gate != "none":
        surgery.add_gates(_alive(sites), spec.gate, spec.gate_init)
    shapes = [s for s in sites.shapes if s.name in held]
    surgery.apply_plan(sites, PruningPlan(assign=initial_values(shapes, held, spec, seed, draw_A=draw_A)))
    surgery.freeze(sites, [kind for kind in ("A", "B") if not spec.groups.get(kind, ParameterGroup()).trained])
    surgery.sync_config(sites)


def _alive(sites: SiteSet) -> SiteSet:
    return SiteSet({n: s for n, s in sites.items() if not s.is_dropped}, sites.peft_config)


def _require_fresh(sites: SiteSet, reason: str) -> None:
    if not is_fresh(sites):
        raise UsageError.of(
            "model", "adapter", f"has been trained before, and {reason}", "Start from a fresh adapter, whose B is zero"
        )


def _cost(ranks: Mapping[str, int], shapes: list[SiteShape]) -> int:
    return sum(ranks[s.name] * s.unit_cost for s in shapes)


def _draw_head(model: PeftModel, seed: int) -> None:
    """Draw the trained head from the seed, as `compare` does. Language models keep theirs."""
    base = model.get_base_model()
    (adapter,) = model.active_adapters
    if model.peft_config[adapter].task_type != TaskType.SEQ_CLS:
        return
    names = []
    for name in head_modules(base):
        trained = getattr(base.get_submodule(name), "modules_to_save", None)
        if trained is None or adapter not in trained:
            raise UsageError.of("modules_to_save", name, "is part of the head and not trained", "Add it to LoraConfig")
        names.append(f"{name}.modules_to_save.{adapter}")
    initialise_head(base, names, generator(seed, "head"))
