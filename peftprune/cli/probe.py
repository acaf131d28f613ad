"""What a method is seen to do: it is run for a moment on a tiny random model, and its plans are watched.

Capabilities are observed rather than written down, so that the table of methods cannot say what the code does not do.
The model has three blocks of width 16 with random weights, the data are random tokens, and the options are the
defaults; the events are those of training, carried by the same callback.
"""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from peftprune.adapters import surgery
from peftprune.adapters.inject import inject
from peftprune.cli.probe_model import BATCH, STEPS, tiny_model, train
from peftprune.errors import PeftPruneError
from peftprune.files import write_atomically
from peftprune.methods.registry import MethodSpec, load
from peftprune.methods.request import parse
from peftprune.models.layers import discover_sites, head_modules
from peftprune.strategy.baseline import Baseline
from peftprune.strategy.budget import Budget, Outcome
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.sites import SiteSet
from peftprune.study.arm import finish_ledger
from peftprune.study.planning import ArmPlan, plan_arm
from peftprune.training.events import BaselineEvents, PruningEvents
from peftprune.training.ledger import BaseCost, Ledger
from peftprune.training.tokenise import cache_folder

_EXAMPLES = 60


def capabilities(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name to what `observe` says, from the cache where code and libraries are those of before."""
    file = cache_folder() / "capabilities.json"
    key = _key()
    try:
        known = json.loads(file.read_text())
        found = dict(known["methods"]) if known["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):
        found = {}
    missing = [name for name in names if name not in found]
    own = {name for name in missing if load(name).__module__.startswith("peftprune.")}
    seen = {name: observe(name) for name in missing}
    # Others' code may change without their version: it is watched anew each time.
    found |= {name: facts for name, facts in seen.items() if name in own}
    if own:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps({"key": key, "methods": found}, indent=1).encode())
        except OSError:
            pass
    return {name: seen[name] if name in seen else found[name] for name in names}


def observe(name: str) -> dict[str, Any]:
    """Run one method for a moment and say what it did.

    Returns:
        `changes`: which of "ranks" (cut), "redistribution" (even ranks became uneven), "sites" (removed), "sharing",
        "growth", "entries" (zeroed), "values" (set) and "fresh start" its plans brought about. `start`: "even" or
        "uneven" starting ranks, or "none". `events`: how many plans changed something; `first` and `last`: when, as
        shares of the run; `when`: the same in words. `peak`: largest parameters over final ones. `trained`: share of
        the final parameters that is trained. `budget`: "met", or the exemption. `phases`: their names, those without
        training marked. `penalty`, `multipliers`: whether it gave any. `gate`: its kind. Where the method cannot be
        run here, `error` alone says why.
    """
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return _observe(name)
    except Exception as error:
        # A method that someone else wrote must not take the whole table with it.
        return {"error": str(error) if isinstance(error, PeftPruneError) else f"{type(error).__name__}: {error}"}


def _observe(name: str) -> dict[str, Any]:
    plan = _plan(name)
    model, sites = _prepared(plan)
    method = plan.method
    watched = _Watched(
        BaselineEvents(method, model) if isinstance(method, Baseline) else method,
        sites,
        plan.budget,
        plan.phases,
        seed=0,
        step_cost=lambda step: (BATCH, 6 * BATCH, 6 * BATCH),
        base_cost=BaseCost(1, 1),
    )
    train(model, watched)
    surgery.fold(sites)
    finished = finish_ledger(plan, head_modules(tiny_model()), sites, model, watched.ledger)
    if isinstance(method, Baseline) and any(finished.ranks[n] < plan.spec.ranks[n] for n in finished.ranks):
        watched.note(STEPS, {"ranks"})
    return _facts(plan, watched, watched.ledger)


def _facts(plan: ArmPlan, watched: _Watched, ledger: Ledger) -> dict[str, Any]:
    spec, final = plan.spec, max(1, ledger.final_params)
    even = plan.budget.solve(plan.shapes)
    start = "none"
    if spec.ranks:
        # A larger rank everywhere is even too: what counts is whether sites differ by more than rounding.
        shares = {n: spec.ranks[n] / even[n] for n in even}
        start = "even" if max(shares.values()) - min(shares.values()) <= 1 / min(even.values()) else "uneven"
    times = [step / STEPS for step, _ in watched.events]
    return {
        "changes": sorted(set().union(*(changes for _, changes in watched.events))),
        "start": start,
        "events": len(times),
        "first": times[0] if times else None,
        "last": times[-1] if times else None,
        "when": _in_words(start, times, plan),
        "peak": round(ledger.peak_params / final, 2),
        "trained": round(ledger.trained_params / final, 2),
        "budget": plan.exemption or "met",
        "phases": [r.name + ("" if r.phase.kind == "train" else " (no training)") for r in plan.phases],
        "penalty": watched.penalties,
        "multipliers": watched.multipliers,
        "gate": spec.gate,
    }


def _in_words(start: str, times: Sequence[float], plan: ArmPlan) -> str:
    """When it decides: at the start, before training, once, throughout, at the end; or never."""
    parts = ["start"] if start == "uneven" else []
    trained = next((r.start for r in plan.phases if r.phase.kind == "train"), 0) / STEPS
    if len(times) == 1:
        at = times[0]
        parts.append("before training" if at <= trained else "end" if at == 1 else f"once, at {at:.0%}")
    elif times:
        parts.append(f"throughout, {len(times)} times from {times[0]:.0%} to {times[-1]:.0%}")
    return "; ".join(parts) or "never"


class _Watched(PruningEvents):
    """Notes what every applied plan changed, and which other answers the strategy gave."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events: list[tuple[int, set[str]]] = []
        self.penalties = self.multipliers = False
        self._zeros = float("inf")
        for name, note in (("penalty", "penalties"), ("before_step", "multipliers")):
            setattr(self.strategy, name, self._noting(getattr(self.strategy, name), note))

    def _noting(self, call: Any, note: str) -> Any:
        def answer(*args: Any) -> Any:
            given = call(*args)
            setattr(self, note, getattr(self, note) or given is not None)
            return given

        return answer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if self.sites:
            return
        # A baseline makes no plans: what it zeroes by itself shows in its tensors.
        trained = (p for p in kwargs["model"].parameters() if p.requires_grad)
        zeros = sum(p.numel() - int(torch.count_nonzero(p)) for p in trained)
        if zeros > self._zeros:
            self.events.append((state.global_step, {"entries"}))
        self._zeros = zeros

    def _apply(self, plan: PruningPlan, step: int, optimizer: torch.optim.Optimizer) -> None:
        before = self.sites.ranks
        super()._apply(plan, step, optimizer)
        after = self.sites.ranks
        masks = [mask for parts in plan.zero.values() for mask in parts.values()]
        found = {
            "sites": any(before[n] > 0 == after[n] for n in before),
            "ranks": any(before[n] > after[n] > 0 for n in before if n not in plan.reinit),
            "redistribution": _spread(after) > 1 >= _spread(before),
            "growth": any(n > 0 for n in plan.grow.values()),
            "sharing": any(len(group) > 1 for group in plan.share),
            "entries": any(bool(mask.any()) for mask in masks),
            "values": bool(plan.assign),
            "fresh start": bool(plan.reinit),
        }
        changes = {name for name, happened in found.items() if happened}
        if changes:
            self.note(step + 1, changes)

    def note(self, step: int, changes: set[str]) -> None:
        """What the end of a step brought about; several plans of one step are one event."""
        if self.events and self.events[-1][0] == step:
            self.events[-1][1].update(changes)
        else:
            self.events.append((step, changes))


def _spread(ranks: Mapping[str, int]) -> int:
    """How far the ranks of the sites that have an adapter lie apart."""
    alive = [rank for rank in ranks.values() if rank]
    return max(alive) - min(alive) if alive else 0


def _plan(name: str) -> ArmPlan:
    (spec,) = parse([MethodSpec(name, load(name))])
    plan = plan_arm(
        spec,
        discover_sites(tiny_model(), "all-linear"),
        Budget(rank=4, steps=STEPS),
        {"batch_size": BATCH},
        num_examples=_EXAMPLES,
        base_parameters=sum(p.numel() for p in tiny_model().parameters()),
        task="probe",
    )
    if getattr(plan.method, "depends_on", None) is None:
        return plan
    # What the other arm ended with: made up, since only what is done with it is of interest here.
    shapes = plan.shapes
    ranks = {s.name: 2 + 4 * (i % 2) for i, s in enumerate(shapes)}
    return plan.after(Outcome("probe", ranks, 0))


def _prepared(plan: ArmPlan) -> tuple[Any, SiteSet]:
    model = copy.deepcopy(tiny_model()).requires_grad_(False)
    head = head_modules(model)
    if isinstance(plan.method, Baseline):
        return plan.method.prepare(model, plan.preparation(head, 0)), SiteSet({}, None)
    return inject(model, plan.shapes, plan.spec, scaling=2.0, seed=0, head=head)


def _key() -> str:
    """Changes with our code and with the libraries below it."""
    sums = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sums.update(path.read_bytes())
    packages: Mapping[str, str] = {name: version(name) for name in ("torch", "transformers", "peft")}
    return f"{sums.hexdigest()} {dict(packages)}"
