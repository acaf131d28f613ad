"""`PruningEvents` calls a method at the events of training and passes its plans to the surgery.

It knows neither the method's name nor the task; see `peftprune.training.trainer` for the order of events. The trainer
of this package and the callback for any other trainer (`peftprune.callback.events`) share it.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from peftprune.adapters import surgery
from peftprune.errors import DivergedError, RunError
from peftprune.strategy import ArmBudget, Method, PruningPlan, SiteSet, StepView
from peftprune.strategy.phases import PhaseRange, phase_at
from peftprune.strategy.rng import generator
from peftprune.training.cpu import begin_step
from peftprune.training.distributed import check_agreement
from peftprune.training.ledger import BaseCost, Ledger, optimizer_bytes, peak_memory, stored_parameters
from peftprune.training.signals import Collectors
from peftprune.training.trace import Trace

_log = logging.getLogger(__name__)
StepCost = Callable[[int], tuple[int, int, int]]
"""Step, from 0, to (examples, tokens, padded tokens)."""
Progress = Callable[[int, int, str, int], None]
"""Called after every step with (steps done, total steps, phase name, ranks in total)."""


class PruningEvents(TrainerCallback):
    """Drives one method through one training run.

    `seed` is the arm's, for the method's own random stream. With `full_steps`, forward-only phases also compute
    gradients, which are discarded; for the ledger.
    """

    def __init__(
        self,
        method: Method,
        sites: SiteSet,
        budget: ArmBudget,
        phases: Sequence[PhaseRange],
        *,
        seed: int,
        step_cost: StepCost,
        base_cost: BaseCost,
        progress: Progress | None = None,
        full_steps: bool = False,
    ) -> None:
        self.method = method
        self.sites = sites
        self.budget = budget
        self.phases = tuple(phases)
        self.rng = generator(seed, "strategy")
        self.init_rng = generator(seed, "strategy", "new ranks")
        self.ledger = Ledger()
        self.trace = Trace()
        self._step_cost = step_cost
        self._base_cost = base_cost
        self._progress = progress
        self._full_steps = full_steps
        self._collectors: Collectors | None = None
        self._plan = PruningPlan()
        self._frozen: list[Any] = []
        self._resumed = False
        self._mark = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        surgery.check_optimizer(kwargs["optimizer"])
        self._collectors = Collectors(kwargs["model"], self.sites, self.method.signals)
        if not self._resumed:
            self.method.start(self._view(0))
            self.trace.begin(self.sites, self.phases[0].name)
        self._mark = time.perf_counter()

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        begin_step(kwargs["model"], state.global_step)
        view = self._view(state.global_step)
        multipliers = self.method.before_step(view)
        surgery.set_multipliers(self.sites, None if multipliers is None else dict(multipliers))
        self._frozen = surgery.freeze_components(self.sites, self.method.frozen_components(view) or {})
        if view.phase.phase.kind == "train":
            self._add_penalty(kwargs["model"])
        assert self._collectors is not None
        self._collectors.arm(view.phase.phase.signals)

    def note_labels(self, labels: Any) -> None:
        """Takes the labels of the next forward pass from a trainer that does not hand them to the model."""
        if self._collectors is not None:
            self._collectors.labels = labels

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        assert self._collectors is not None
        view = self._view(state.global_step, self._collectors.take())
        self.method.observe(view)
        if view.phase.phase.kind == "gradient":
            # An optimizer passes over tensors without a gradient.
            kwargs["model"].zero_grad()

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._plan = self.method.plan_for(kwargs["model"], self._view(state.global_step))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        step = state.global_step - 1
        optimizer = inner_optimizer(kwargs["optimizer"])
        # An evaluation after this step must see the whole adapters.
        surgery.set_multipliers(self.sites, None)
        for handle in self._frozen:
            handle.remove()
        current = phase_at(self.phases, step)
        self._charge(step, current)
        self._apply(self._plan, step, optimizer)
        self._plan = PruningPlan()
        if step + 1 == current.stop:
            self.ledger.optimizer_bytes = max(self.ledger.optimizer_bytes, optimizer_bytes(optimizer))
            self._apply(self.method.end_phase(self._view(step)), step, optimizer)
            following = phase_at(self.phases, step + 1)
            if following is not current and following.phase.reset_optimizer:
                optimizer.state.clear()
        now = time.perf_counter()
        seconds = self.ledger.phase_seconds
        seconds[current.name] = seconds.get(current.name, 0.0) + now - self._mark
        self._mark = now
        if self._progress is not None:
            self._progress(step + 1, self.phases[-1].stop, current.name, sum(self.sites.ranks.values()))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(
                f"loss: {loss} by step {state.global_step} is not finite. Lower learning_rate (now "
                f"{args.learning_rate:g}), or train with dtype float32"
            )
        self.ledger.peak_memory_bytes = max(self.ledger.peak_memory_bytes, peak_memory())

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.ledger.evaluation_seconds += now - self._mark
        self._mark = now

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        assert self._collectors is not None
        self._collectors.remove()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs beside the weights and the optimizer."""
        return {
            "strategy": self.method.state_dict(),
            "rng": self.rng.get_state(),
            "init_rng": self.init_rng.get_state(),
            "ledger": vars(self.ledger),
            "trace": self.trace.state_dict(),
            "structure": surgery.structure(self.sites),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`: resizes, ties and drops sites as they were. Call it before weights are loaded."""
        surgery.restore_structure(self.sites, state["structure"])
        self.resume(state)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict` except for the sites, which must be restored already."""
        self.method.load_state_dict(state["strategy"])
        self.rng.set_state(state["rng"])
        self.init_rng.set_state(state["init_rng"])
        self.ledger = Ledger(**state["ledger"])
        self.trace.load_state_dict(state["trace"])
        self._resumed = True

    def _view(self, step: int, signals: Mapping[Any, Any] | None = None) -> StepView:
        phase, total_steps = phase_at(self.phases, step), self.phases[-1].stop
        return StepView(step + 1, total_steps, phase, self.budget, self.sites, signals or {}, self.rng)

    def _add_penalty(self, model: nn.Module) -> None:
        # Added to the gradients once per step, before the first backward: the logged loss does not contain it, and the
        # sum over micro-batches needs no weights.
        penalty = self.method.penalty_for(model, self.sites)
        if penalty is None:
            return
        params = [p for p in model.parameters() if p.requires_grad]
        for param, grad in zip(params, torch.autograd.grad(penalty, params, allow_unused=True), strict=True):
            if grad is not None:
                param.grad = grad if param.grad is None else param.grad + grad

    def _apply(self, plan: PruningPlan, step: int, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(plan, PruningPlan):
            raise RunError(f"plan: {plan!r} is not a PruningPlan. Return PruningPlan() to change nothing")
        if plan.is_empty:
            return
        before, events = sum(self.sites.ranks.values()), len(self.trace.rows)
        changes = surgery.apply_plan(self.sites, plan, optimizer=optimizer, rng=self.init_rng)
        check_agreement(lambda: surgery.structure(self.sites), f"the ranks after step {step + 1}")
        self.trace.record(self.sites, plan, changes, step + 1, phase_at(self.phases, step).name)
        if len(self.trace.rows) > events:
            facts = step + 1, self.method.name, plan.reason or "a decision", before, sum(self.sites.ranks.values())
            _log.info("step %d: %s: %s; ranks in total %d → %d", *facts)

    def _charge(self, step: int, current: PhaseRange) -> None:
        samples, tokens, padded = self._step_cost(step)
        kind, share = current.phase.kind, self._base_cost.stream_share
        full = kind != "forward" or self._full_steps
        base, adapter = self._base_cost.step_flops(padded, padded / samples, self.sites, full)
        if kind == "gradient":
            # The gradients of the adapted weights themselves.
            weights = sum(s.d_in * s.d_out * share.get(s.shape.stream, 1.0) for s in self.sites.values())
            base += 2.0 * padded * weights
        ledger = self.ledger
        ledger.peak_params = max(ledger.peak_params, stored_parameters(self.sites))
        ledger.steps += 1
        ledger.samples += samples
        ledger.tokens += tokens
        ledger.forward_only_samples += samples if kind == "forward" else 0
        ledger.base_flops += base
        ledger.adapter_flops += adapter


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Returns the torch optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
