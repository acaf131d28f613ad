"""Plan an arm before it is trained: ranks, phases and parameters as integers."""

from __future__ import annotations

import copy
import warnings
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peftprune.errors import UsageError
from peftprune.methods.registry import MethodSpec
from peftprune.methods.request import parse
from peftprune.models.bundled import known_name
from peftprune.models.layers import count_parameters, discover_sites, head_modules, left_out
from peftprune.models.load import describe
from peftprune.strategy.budget import ArmBudget, Budget, Outcome, parse_budget
from peftprune.strategy.method import Method, Preparation
from peftprune.strategy.phases import PhaseRange, phase_ranges
from peftprune.strategy.sites import SiteShape, rank_cost
from peftprune.strategy.spec import AdapterSpec, check_spec
from peftprune.study.published import PublishedValue, published_values
from peftprune.tasks import task_info
from peftprune.training.ledger import trained_tensors
from peftprune.training.settings import TrainingSettings, resolve_settings

_REFERENCE_RANK = 8
"""The rank under `budget="paper"` of methods whose paper names no uniform rank: that of the LoRA baseline."""


@dataclass(frozen=True)
class ArmPlan:
    """One method's run, solved from the budget.

    `method` is a fresh object, `spec` the starting adapters, and `shapes` are the sites. Under `budget="paper"` the
    settings include the paper's own, and `published` is what the method's sources state for this model and task.
    """

    label: str
    method: Method
    settings: TrainingSettings
    budget: ArmBudget
    spec: AdapterSpec
    phases: tuple[PhaseRange, ...]
    shapes: tuple[SiteShape, ...]
    published: tuple[PublishedValue, ...] = ()

    @property
    def ranks(self) -> dict[str, int]:
        """The final ranks, as far as they are known before the run; otherwise the starting ranks."""
        return dict(self.spec.final_ranks if self.spec.final_ranks is not None else self.spec.ranks)

    @property
    def exemption(self) -> str | None:
        """Why the method cannot meet the budget; None where it can."""
        return self.method.exempt(self.shapes, self.budget)

    @property
    def unit_left(self) -> int | None:
        """Cost of the cheapest further unit of rank; None where every site is full or there are no ranks."""
        costs = [s.unit_cost for s in self.shapes if s.name in self.ranks and self.ranks[s.name] < s.max_rank]
        return min(costs, default=None)

    def preparation(self, head: Sequence[str], seed: int) -> Preparation:
        """Returns what the method prepares the model with."""
        settings = self.settings
        return Preparation(self.budget, self.shapes, self.spec, head, settings.scaling, settings.lora_dropout, seed)

    @property
    def peak_params(self) -> int:
        """Adapter parameters at the larger of start and end."""
        return max(rank_cost(self.spec.ranks, self.shapes) + self.spec.fixed_params, self.final_params)

    @property
    def final_params(self) -> int:
        """Adapter parameters at the end, as far as they are known before the run."""
        return rank_cost(self.ranks, self.shapes) + self.spec.fixed_params

    @property
    def relative_compute(self) -> float:
        """Adapter multiply-adds over the run, relative to training the final ranks in every step."""
        start, final = (rank_cost(ranks, self.shapes) for ranks in (self.spec.ranks, self.ranks))
        if final == 0:
            return 1.0
        shares = [1 / 3 if r.phase.kind == "forward" else 1.0 for r in self.phases]
        spent = sum(r.steps * (final if i else start) * shares[i] for i, r in enumerate(self.phases))
        return spent / (final * self.phases[-1].stop)

    def after(self, outcome: Outcome) -> ArmPlan:
        """Returns the plan with ranks solved from the outcome of the arm that it depends on."""
        budget = replace(self.budget, outcome=outcome)
        return replace(self, budget=budget, spec=_checked_spec(self.method, self.shapes, budget))

    def as_dict(self, head_params: int, adapter_params: int | None = None) -> dict[str, Any]:
        """Returns the plan as plain values, for `peftprune plan --json`.

        `adapter_params` are those trained outside of the head, where ranks do not determine them.
        """
        peak, final = (self.peak_params, self.final_params) if adapter_params is None else (adapter_params,) * 2
        return {
            "ranks": self.ranks,
            "start_ranks": dict(self.spec.ranks),
            "decided_in_training": self.spec.decided_in_training,
            "exemption": self.exemption,
            "peak_params": peak,
            "final_params": final,
            "head_params": head_params,
            "phases": [{"name": r.name, "steps": r.steps} for r in self.phases],
            "relative_compute": round(self.relative_compute, 4),
        } | ({"published": [asdict(value) for value in self.published]} if self.budget.paper else {})


def plan_arm(
    request: MethodSpec,
    shapes: Sequence[SiteShape],
    budget: Budget | Literal["paper"],
    given: Mapping[str, Any],
    *,
    num_examples: int,
    base_parameters: int,
    task: str,
    model: str,
) -> ArmPlan:
    """Solves one method for the sites and the budget, or for its published setting under "paper".

    `given` are the user's training settings, and `num_examples` the training examples before `max_train_samples`.
    `task` and `model`, a name that `known_name` gives, select what is published. Raises UsageError, naming the method,
    when the budget cannot be met, or the known final ranks overspend it.
    """
    method = request.build()
    published = method.paper().published(model, task) if budget == "paper" else {}
    settings = resolve_settings(given, published)
    if settings.load_in is not None and not method.adapts:
        cure = "Leave load_in out, or this method"
        raise UsageError.of("load_in", settings.load_in, f"needs an adapter, and {request.label} has none", cure)
    if settings.max_train_samples is not None:
        num_examples = min(num_examples, settings.max_train_samples)
    matched = Budget(rank=published.get("rank", _REFERENCE_RANK)) if isinstance(budget, str) else budget
    if not matched.has_length:
        matched = replace(matched, epochs=settings.epochs)
    arm_budget = ArmBudget(
        params=matched.parameters(shapes, base_parameters),
        total_steps=matched.total_steps(num_examples, settings.batch_size),
        num_examples=num_examples,
        batch_size=settings.batch_size,
        count=matched.count,
        paper=budget == "paper",
    )
    try:
        spec = _checked_spec(method, shapes, arm_budget)
        phases = phase_ranges(method.phases(arm_budget), arm_budget)
    except UsageError as error:
        raise UsageError(f"{request.label}: {error}{_least_steps(request, shapes, arm_budget)}") from None
    shown = published_values(request.label, method, model, task, given) if budget == "paper" else ()
    return ArmPlan(request.label, method, settings, arm_budget, spec, phases, tuple(shapes), shown)


def _least_steps(request: MethodSpec, shapes: Sequence[SiteShape], budget: ArmBudget) -> str:
    """Returns how many steps a method that does not fit needs, in words; empty where more steps do not help."""

    def fits(steps: int) -> bool:
        method, longer = request.build(), replace(budget, total_steps=steps)
        try:
            _checked_spec(method, shapes, longer)
            return bool(phase_ranges(method.phases(longer), longer))
        except UsageError:
            return False

    if (enough := next(filter(fits, (budget.total_steps << n for n in range(1, 15))), None)) is None:
        return ""
    return f". It needs at least {bisect_left(range(enough), True, lo=budget.total_steps, key=fits):,} steps"


def _checked_spec(method: Method, shapes: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
    """Returns the method's spec. Refuses ranks that do not fit the sites, and known final ranks that overspend."""
    spec = method.spec(shapes, budget)
    if spec.ranks or not method.prepares_model:
        check_spec(spec, shapes)
    if spec.decided_in_training or budget.paper or method.exempt(shapes, budget) is not None:
        return spec
    final = spec.ranks if spec.final_ranks is None else spec.final_ranks
    share = dict(spec.density) if budget.count == "nonzero" else {}
    costs = {s.name: s.d_in * share.get("A", 1.0) + s.d_out * share.get("B", 1.0) for s in shapes}
    spent = sum(final.get(name, 0) * cost for name, cost in costs.items()) + spec.fixed_params
    # Densities are fractions, so a sum that is whole may miss it by its last bits.
    if round(spent, 3) <= budget.params:
        return spec
    where = "spec.ranks" if spec.final_ranks is None else "spec.final_ranks"
    problem = f"overspend the budget by {spent - budget.params:,.0f} of {budget.params:,}"
    cure = (
        "Solve them with budget.solve. Give final_ranks where a later plan cuts to other ranks than the first ones, or "
        "decided_in_training=True where training decides on them"
    )
    raise UsageError.of(where, f"{spent:,.0f} {budget.count} parameters", problem, cure)


def plan_methods(
    methods: str | Sequence[Any],
    model: str | Path,
    budget: str,
    target_modules: str | Sequence[str],
    task: str,
    train_examples: int | None = None,
    **given: Any,
) -> dict[str, dict[str, Any]]:
    """Plans each method for a model known by its shape alone: label to `ArmPlan.as_dict`, with what it leaves out.

    `model` is a folder, a config.json, a hub name, or a bundled architecture. `task` sets the number of training
    examples, which `train_examples` replaces, and of classes; its data is not read. `given` are training settings, and
    the other arguments are those of `compare`. Raises UsageError for what is unknown and a budget that cannot be met.
    """
    specs, budget_ = parse(methods), parse_budget(budget)
    info = task_info(task)
    examples = info.train_size if train_examples is None else train_examples
    if examples < 1:
        raise UsageError.of("train_examples", examples, "is below 1", "Give 1 or more")
    shape = describe(model, num_labels=info.num_labels, kind=info.kind)
    head = head_modules(shape)
    base_parameters, head_parameters = count_parameters(shape)
    shapes = discover_sites(shape, target_modules)
    plans = [
        plan_arm(
            spec,
            shapes,
            budget_,
            given,
            num_examples=examples,
            base_parameters=base_parameters,
            task=info.name,
            model=known_name(shape.config),
        )
        for spec in specs
    ]
    rest = {"left_out": left_out(shape, target_modules)}
    return {plan.label: plan.as_dict(head_parameters, baseline_params(plan, shape, head)) | rest for plan in plans}


def baseline_params(plan: ArmPlan, shape: Any, head: Sequence[str]) -> int | None:
    """Returns the parameters that a baseline trains outside the head, counted from its model without weights."""
    if not plan.method.prepares_model:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        model = plan.method.prepare(copy.deepcopy(shape).requires_grad_(False), plan.preparation(head, seed=0))
    return sum(p.numel() for p in trained_tensors(model, head)[0])
