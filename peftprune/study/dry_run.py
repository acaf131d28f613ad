"""What a planned study takes on this machine, from a few timed steps of plain LoRA and the methods' planned FLOPs."""

import copy
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from peftprune.methods.request import parse
from peftprune.models.layers import count_parameters
from peftprune.models.load import describe
from peftprune.strategy.budget import Budget
from peftprune.strategy.sites import rank_cost
from peftprune.study.arm import make_trainer, prepare_model
from peftprune.study.disk import needed_bytes
from peftprune.study.execution.work import LazySetup, StudyArm, Work
from peftprune.study.planning import ArmPlan, baseline_params
from peftprune.study.size import tuning_size
from peftprune.study.store import ArmFolder
from peftprune.study.tuning import Tuning
from peftprune.training.ledger import Ledger, peak_memory

_TIMED = 4
"""Steps that are timed, after a first one."""
_IN_MEMORY = 16
"""Bytes per trained parameter: the value, its gradient and AdamW's two moments."""
_BACKWARD = {"none": 0.5, "activations": 1.0, "weights": 1.5}
"""FLOPs of the base model's passes, relative to those of training adapters."""


class Probe(NamedTuple):
    """A few steps of plain LoRA: plan, what was counted, seconds per step, and bytes of memory."""

    plan: ArmPlan
    ledger: Ledger
    seconds: float
    memory: int

    def step_seconds(self, plan: ArmPlan) -> float:
        """Returns the expected mean seconds of a step of another plan for the same model and data."""
        base, adapter = self.ledger.base_flops, self.ledger.adapter_flops
        weights = plan.relative_compute * rank_cost(plan.ranks, plan.shapes)
        weights += plan.method.multiplied(plan.shapes, plan.spec)[0]
        flops = _BACKWARD[plan.method.backward] * base + adapter * weights / self.plan.final_params
        return self.seconds * flops / (base + adapter) * plan.settings.batch_size / self.plan.settings.batch_size


def probe(arm: StudyArm, lazy: LazySetup, dtype: str) -> Probe:
    """Trains plain LoRA for a few steps with an arm's settings, in a folder that does not stay."""
    setup, planned = copy.copy(lazy.setup), arm.plan
    setup.task, setup._inputs = replace(setup.task, evaluation={}), {}
    examples = min(planned.budget.num_examples, (_TIMED + 1) * planned.settings.batch_size)
    given = planned.settings.as_dict() | {"checkpoints": 0, "select": "last", "max_train_samples": examples}
    plan = setup.plan(parse("lora")[0], Budget(params=planned.budget.params, steps=_TIMED + 1), given)
    inputs, ends = setup.inputs(plan, dtype), list[float]()
    model, sites = prepare_model(plan, inputs.model.model, inputs.head, seed=0)
    with TemporaryDirectory() as folder:
        files = ArmFolder(Path(folder))
        trainer = make_trainer(plan, inputs, 0, files, model, sites, lambda *_: ends.append(time.perf_counter()))
        trainer.run()
    return Probe(plan, trainer.pruning.ledger, (ends[-1] - ends[0]) / _TIMED, peak_memory())


def estimate(work: Work, tuning: Tuning | None) -> list[dict[str, Any]]:
    """Returns one row per task, budget and method that has arms to train, with their number, trials of tuning included.

    `stopped` counts those that stop at a third of their steps. `steps` and `minutes` are those of all of them, one
    after another, and `disk` the megabytes that they leave; `memory` and `checkpoints` are the megabytes that one of
    them takes while it trains.
    """
    probes, rows = dict[str, Probe](), []
    open_arms = work.unfinished().values()
    left = Counter((arm.task, arm.budget, arm.spec.label) for arm in open_arms)
    for key, arm in {(arm.task, arm.budget, arm.spec.label): arm for arm in open_arms}.items():
        plan, lazy = arm.plan, work.setups[arm.task]
        if arm.task not in probes:
            probes[arm.task] = probe(arm, lazy, work.dtype)
        timed, task = probes[arm.task], lazy.setup.task
        shape = describe(lazy.model, task.num_labels, task.kind)
        (_, head), baseline = count_parameters(shape), baseline_params(plan, shape, lazy.setup.head)
        peak, final = (plan.peak_params, plan.final_params) if baseline is None else (baseline, baseline)
        size = tuning_size(tuning, {arm.spec.label: plan.budget.total_steps}, left[key])
        arms = size["trials"] + size["final_arms"]
        # A forward pass alone costs a third of a training step.
        evaluation = sum(map(len, task.evaluation.values())) / timed.plan.settings.batch_size * timed.seconds / 3
        minutes = (size["steps"] * timed.step_seconds(plan) + arms * evaluation) / 60
        megabytes = {
            "memory": timed.memory + _IN_MEMORY * (peak - timed.plan.peak_params),
            "disk": arms * needed_bytes(final + head, 0),
            "checkpoints": needed_bytes(peak + head, plan.settings.checkpoints),
        }
        named = dict(zip(("task", "budget", "method"), key, strict=True))
        counted = {"arms": arms, "stopped": size["stopped"], "steps": size["steps"], "minutes": minutes}
        rows.append({**named, **counted, **{name: size / 1e6 for name, size in megabytes.items()}})
    return rows
