"""The events of a training run in a Trainer that peftprune did not make."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peftprune.adapters import surgery
from peftprune.callback.attach import base_cost
from peftprune.callback.data_order import serve_phases
from peftprune.callback.param_groups import StepParamGroups
from peftprune.callback.start import Start
from peftprune.callback.token_counter import TokenCounter
from peftprune.strategy import ArmBudget, RankPruningStrategy
from peftprune.strategy.phases import PhaseRange, phase_at
from peftprune.training.distributed import GradientAverage, broadcast, check_agreement, sum_over_processes
from peftprune.training.events import PruningEvents, inner_optimizer

_log = logging.getLogger(__name__)


class UserTrainerEvents(PruningEvents):
    """Runs phases, learning rates and gradient averaging through the hooks of any Trainer.

    `args` are the trainer's arguments, `loader` is its training data loader, which is made to serve the phases, and
    `factors` multiply its learning rate, one per step.
    """

    def __init__(
        self,
        strategy: RankPruningStrategy,
        start: Start,
        budget: ArmBudget,
        phases: Sequence[PhaseRange],
        *,
        seed: int,
        model: Any,
        args: Any,
        loader: Any,
        factors: Sequence[float],
    ) -> None:
        accumulation = args.gradient_accumulation_steps
        self._order = serve_phases(loader, phases, budget.batch_size, args, seed)
        self._steps_per_epoch = 0 if self._order is None else -(-len(loader) // accumulation)
        self._factors = factors
        self._groups = StepParamGroups(start.spec.groups, args.learning_rate, args.weight_decay)
        self._counter = TokenCounter(model)
        self._average = GradientAverage()
        self._passed_over: tuple[float, int] | None = None
        super().__init__(
            strategy,
            start.sites,
            budget,
            phases,
            seed=seed,
            step_cost=self._counter.cost,
            base_cost=base_cost(model),
            full_steps=True,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_agreement(lambda: surgery.structure(self.sites), "the ranks at the start")
        broadcast(self.sites.parameters())
        self._average.add(self.sites.parameters())
        super().on_train_begin(args, state, control, **kwargs)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._order is not None:
            self._order.start_epoch(state.global_step // self._steps_per_epoch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._counter.start()
        if self._forward_only(state.global_step):
            model = kwargs["model"]
            # The trainer switches to training mode before every micro-batch.
            model.train = lambda mode=True: nn.Module.train(model, False)
        super().on_step_begin(args, state, control, **kwargs)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._counter.stop()
        if self._forward_only(state.global_step):
            model = kwargs["model"]
            del model.train
            for param in model.parameters():
                param.grad = None
        super().on_pre_optimizer_step(args, state, control, **kwargs)
        factor = self._factors[min(state.global_step, len(self._factors) - 1)]
        self._groups.override(inner_optimizer(kwargs["optimizer"]), self.sites, factor)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._groups.restore(inner_optimizer(kwargs["optimizer"]))
        super().on_optimizer_step(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decisions = len(self.trace.rows)
        super().on_step_end(args, state, control, **kwargs)
        if len(self.trace.rows) > decisions:
            self._forget_best(args, state)
        self._average.add(self.sites.parameters())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs:
            return
        if "learning_rate" in logs and 0 < state.global_step <= len(self._factors):
            logs["learning_rate"] *= self._factors[state.global_step - 1]
            if state.log_history:
                state.log_history[-1]["learning_rate"] = logs["learning_rate"]
        super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if args.load_best_model_at_end:
            self._report_best(args, state)
        self._counter.remove()
        self._average.remove(kwargs["model"])
        ledger = self.ledger
        ledger.tokens += self._counter.tokens()
        spent = ("samples", "tokens", "forward_only_samples", "base_flops", "adapter_flops")
        sums = {n: torch.tensor(float(getattr(ledger, n)), dtype=torch.float64, device=args.device) for n in spent}
        sum_over_processes(sums)
        for name, value in sums.items():
            setattr(ledger, name, type(getattr(ledger, name))(value.item()))

    def state_dict(self) -> dict[str, Any]:
        self.ledger.tokens += self._counter.tokens()
        return super().state_dict() | {"passed_over": self._passed_over}

    def resume(self, state: Mapping[str, Any]) -> None:
        super().resume(state)
        self._passed_over = state.get("passed_over")

    def _forget_best(self, args: Any, state: Any) -> None:
        """Lets the trainer search for its best state anew: the method had not decided everything in those before."""
        if state.best_metric is None:
            return
        found = float(state.best_metric), state.best_global_step
        if self._passed_over is None or _better(found[0], self._passed_over[0], args):
            self._passed_over = found
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def _report_best(self, args: Any, state: Any) -> None:
        decided = self.trace.rows[-1]["step"]
        if state.best_model_checkpoint is None:
            message = "no best checkpoint exists since the last decision (step %d); the final state is kept"
            _log.warning(f"load_best_model_at_end: {message}", decided)
        if self._passed_over is not None:
            metric, step = self._passed_over
            if state.best_metric is None or _better(metric, state.best_metric, args):
                message = "step %s scored better (%g), but does not count: %s decided until step %d"
                _log.warning(f"load_best_model_at_end: {message}", step, metric, self.method.name, decided)

    def _forward_only(self, step: int) -> bool:
        return phase_at(self.phases, step).phase.kind == "forward"


def _better(metric: float, other: float, args: Any) -> bool:
    return metric > other if args.greater_is_better else metric < other
