"""What an arm does in training: when its plans change something, and what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from peftprune.strategy.plan import PruningPlan
from tests.helpers import Arm


class Observed:
    """Trains an arm and notes its decisions.

    Attributes:
        decides, actions: as a method declares them.
        penalty, multipliers: whether the method returned any.
    """

    def __init__(self, arm: Arm) -> None:
        self.events: dict[int, set[str]] = {}
        self.penalty = self.multipliers = False
        model, self.sites, trainer = arm.build()
        self.pruning = trainer.pruning
        self._zeros = float("inf")
        self._watch("_apply", self._applied)
        self._watch("on_step_end", self._step_ended)
        strategy = self.pruning.method
        for name, noted in (("penalty", "penalty"), ("before_step", "multipliers")):
            setattr(strategy, name, self._noting(getattr(strategy, name), noted))
        trainer.run()
        method, ranks = arm.plan.method, arm.plan.spec.ranks
        final = method.finish(model)
        if final is not None and any(final[name] < ranks[name] for name in final):
            self._note(arm.plan.budget.total_steps, "cut ranks")
        self.actions = set().union(*self.events.values())
        self.decides = self._decides(arm)

    def _decides(self, arm: Arm) -> set[str]:
        even = arm.plan.budget.solve(arm.plan.shapes)
        shares = [rank / even[name] for name, rank in arm.plan.spec.ranks.items()]
        # A larger rank at every site is even too, and so is one that differs by rounding.
        uneven = bool(shares) and max(shares) - min(shares) > 1 / min(even.values())
        found = {"at the start"} if uneven else set()
        first_trained = next((r.start for r in arm.plan.phases if r.phase.kind == "train"), 0)
        if len(self.events) == 1:
            (step,) = self.events
            last = step == arm.plan.budget.total_steps
            found.add("before training" if step <= first_trained else "at the end" if last else "once")
        elif self.events:
            found.add("repeatedly")
        return found

    def _watch(self, name: str, watching: Any) -> None:
        original = getattr(self.pruning, name)
        setattr(self.pruning, name, lambda *args, **kwargs: watching(original, *args, **kwargs))

    def _noting(self, call: Any, noted: str) -> Any:
        def answer(*args: Any) -> Any:
            given = call(*args)
            setattr(self, noted, getattr(self, noted) or given is not None)
            return given

        return answer

    def _note(self, step: int, *actions: str) -> None:
        self.events.setdefault(step, set()).update(actions)

    def _step_ended(self, original: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(args, state, control, **kwargs)
        if self.sites:
            return
        # A baseline makes no plans: the entries that it zeroes show in its tensors.
        trained = (p for p in kwargs["model"].parameters() if p.requires_grad)
        zeros = sum(p.numel() - int(torch.count_nonzero(p)) for p in trained)
        if zeros > self._zeros:
            self._note(state.global_step, "zero entries")
        self._zeros = zeros

    def _applied(self, original: Any, plan: PruningPlan, step: int, optimizer: torch.optim.Optimizer) -> None:
        before = self.sites.ranks
        original(plan, step, optimizer)
        after = self.sites.ranks
        masks = [mask for parts in plan.zero.values() for mask in parts.values()]
        found = {
            "remove sites": any(before[n] > 0 == after[n] for n in before),
            "cut ranks": any(before[n] > after[n] > 0 for n in before if n not in plan.reinit),
            "redistribute ranks": _spread(after) > 1 >= _spread(before),
            "grow ranks": any(n > 0 for n in plan.grow.values()),
            "share adapters": any(len(group) > 1 for group in plan.share),
            "zero entries": any(bool(mask.any()) for mask in masks),
            "set values": bool(plan.assign or plan.rotate),
            "restart adapters": bool(plan.reinit),
        }
        if any(found.values()):
            self._note(step + 1, *(name for name, happened in found.items() if happened))


def _spread(ranks: Mapping[str, int]) -> int:
    """The largest difference between the ranks of sites that have an adapter."""
    alive = [rank for rank in ranks.values() if rank]
    return max(alive) - min(alive) if alive else 0
