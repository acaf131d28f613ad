"""Arms of a study as trainers that take steps in turn, and plain LoRA of the same shape beside them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.speed.turns import Turn
from peftprune.adapters import surgery
from peftprune.methods.lora import LoRA
from peftprune.methods.request import parse
from peftprune.models.precision import pick_dtype
from peftprune.strategy.budget import Outcome, parse_budget
from peftprune.strategy.sites import SiteSet
from peftprune.strategy.spec import AdapterSpec
from peftprune.study.arm import make_trainer, prepare_model
from peftprune.study.planning import ArmPlan
from peftprune.study.store import ArmFolder
from peftprune.study.task_setup import Setup
from peftprune.tasks import load_task
from peftprune.training.events import inner_optimizer
from peftprune.training.settings import resolve_settings
from peftprune.training.trainer import PruningTrainer

Model = str | Path


@dataclass(frozen=True)
class Built:
    """A trainer that takes steps in turn, and its sites."""

    turn: Turn
    trainer: PruningTrainer
    sites: SiteSet

    @property
    def optimizer(self) -> Any:
        """The torch optimizer, which exists only once training has begun."""
        return inner_optimizer(self.trainer.optimizer)


@dataclass(frozen=True)
class Bench:
    """One task and model, on which arms are built.

    Attributes:
        task: its name.
        data_dir: the folder of its data.
        targets: the adapted layers.
        folder: where trainers may write.
        model: "minilm" or a folder.
        threads: of every step; None leaves them unchanged.
        settings: of training, where they differ from the defaults.
    """

    task: str
    data_dir: Path
    targets: str
    folder: Path
    model: Model = "minilm"
    threads: int | None = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _setup(self) -> Setup:
        settings = resolve_settings(self._given)
        return Setup(self.model, load_task(self.task, data_dir=self.data_dir), settings, self.targets)

    @property
    def _given(self) -> dict[str, Any]:
        return {"checkpoints": 0} | dict(self.settings)

    def plan(self, method: str, budget: str) -> ArmPlan:
        """Solves a method for a budget. One that depends on another arm receives that arm's planned ranks."""
        (spec,) = parse([method])
        plan = self._setup.plan(spec, parse_budget(budget), self._given)
        needed = plan.method.depends_on
        if needed is None:
            return plan
        return plan.after(Outcome(needed, self.plan(needed, budget).ranks, seed=0))

    def build(self, name: str, plan: ArmPlan) -> Built:
        """Builds an arm of the plan with seed 0."""
        inputs = self._setup.inputs(plan, pick_dtype(plan.settings.dtype))
        model, sites = prepare_model(plan, inputs.model.model, inputs.head, 0)
        trainer = make_trainer(plan, inputs, 0, ArmFolder(self.folder / name), model, sites)
        return Built(Turn(name, trainer, trainer.run, self.threads), trainer, sites)


def plain(plan: ArmPlan) -> ArmPlan:
    """Returns plain LoRA with the plan's initial ranks and phases, without gates, signals, penalties or decisions.

    For a baseline without ranks it has the budget's ranks.
    """
    ranks = plan.spec.ranks or plan.budget.solve(plan.shapes)
    silent = tuple(replace(r, phase=replace(r.phase, signals=frozenset())) for r in plan.phases)
    return replace(plan, label="lora", method=LoRA(), spec=AdapterSpec(ranks=dict(ranks)), phases=silent)


class Shadow:
    """Keeps a plain arm in the current shape of another arm: its ranks, ties and dropped sites.

    Values are not copied, since they do not change the cost of a step.
    """

    def __init__(self, arm: Built, shadow: Built) -> None:
        self._arm, self._shadow = arm, shadow
        self._last = self._structure()

    def follow(self) -> None:
        """Takes on the arm's shape if it has changed; called between two rounds."""
        now = self._structure()
        if now != self._last:
            surgery.restore_structure(self._shadow.sites, now)
            # The moments have the old shapes; the next step creates them in the arm's shapes.
            self._shadow.optimizer.state.clear()
            self._last = now

    def _structure(self) -> dict[str, Any]:
        return copy.deepcopy(surgery.structure(self._arm.sites))


def reshapes(plan: ArmPlan) -> bool:
    """Returns whether the method's sites change shape: a baseline keeps its initial ranks."""
    return not plan.method.prepares_model
