"""`AdapterSpec`: the adapters that a method starts with, and the optimizer settings of their tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peftprune.errors import UsageError
from peftprune.strategy.lazy import Tensor
from peftprune.strategy.sites import SiteShape


@dataclass(frozen=True)
class ParameterGroup:
    """Optimizer settings of one kind of tensor.

    Attributes:
        lr_scale: factor on the run's learning rate, at least 0. At 0 the tensors have gradients, but only plans change
            them: for methods that take steps of their own.
        lr: a learning rate of their own instead, above 0; the run's schedule scales it too.
        constant: the run's schedule leaves their learning rate alone.
        weight_decay: None takes the run's.
        trained: for "A" and "B": False leaves them as they start. They still count as stored parameters.
    """

    lr_scale: float = 1.0
    lr: float | None = None
    constant: bool = False
    weight_decay: float | None = None
    trained: bool = True


def default_groups(**changed: ParameterGroup) -> dict[str, ParameterGroup]:
    """Returns the settings of "A", "B", "gate" and "head": the run's, without weight decay for gates, and `changed`."""
    run = ParameterGroup()
    return {"A": run, "B": run, "gate": ParameterGroup(weight_decay=0.0), "head": run, **changed}


@dataclass(frozen=True)
class AdapterSpec:
    """The adapters and optimizer settings that a method starts with.

    Attributes:
        ranks: site name to starting rank, from 0 (no adapter at that site) to min(d_in, d_out).
        final_ranks: site name to final rank; None means that `ranks` stay.
        decided_in_training: True where the final allocation depends on what training shows; `final_ranks` is then
            only the starting point and the budget is met by a later plan.
        density: expected share of non-zero entries at the end, per tensor (1.0 where nothing is zeroed).
        gate: none, one gate value per rank component, or one per site, between A and B.
        gate_init: initial value of every gate.
        scaling: factor on B A; None takes the run's.
        relative_scaling: site name to a factor on that scaling, for methods whose rule makes it differ; 1 elsewhere.
        fixed_params: trained parameters outside the head that no rank changes, where a baseline has any (the magnitude
            vectors of DoRA). They are part of the budget.
        initial: site name to tensors that replace the default initialisation (A uniform in ±1/√d_in, B zero).
        initial_std: "A", "B" or "gate" to the standard deviation of normal initial values, drawn from the arm's seed,
            that replace the default at every site.
        groups: optimizer settings for "A", "B", "gate" and "head".
    """

    ranks: Mapping[str, int]
    final_ranks: Mapping[str, int] | None = None
    decided_in_training: bool = False
    density: Mapping[str, float] = field(default_factory=dict)
    gate: Literal["none", "rank", "site"] = "none"
    gate_init: float = 1.0
    scaling: float | None = None
    relative_scaling: Mapping[str, float] = field(default_factory=dict)
    fixed_params: int = 0
    initial: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    initial_std: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, ParameterGroup] = field(default_factory=default_groups)


@dataclass(frozen=True)
class Published:
    """A run that a source publishes.

    Attributes:
        source: repository, commit and file, or the paper's table.
        values: training settings, and `rank` where it is not `PaperSettings.rank`. A tuple holds the values that the
            source searches.
        note: what the source states and no setting can.
    """

    source: str
    values: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class PaperSettings:
    """A method's published setting. None means that no accessible source states it: the run's value then holds.

    `rank` is the published final rank where it is uniform. `per_task` maps a task name to training arguments, and
    `runs` a base model and a task, ("roberta-base", "rte"), to what is published for the two.
    """

    rank: int | None = None
    scaling: float | None = None
    weight_decay: float | None = None
    warmup_ratio: float | None = None
    per_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: Mapping[tuple[str, str], Published] = field(default_factory=dict)

    def published(self, model: str, task: str) -> dict[str, Any]:
        """Returns what is published for this model and task by name, `rank` included; tuples as in `Published`."""
        found = {n: getattr(self, n) for n in ("rank", "scaling", "weight_decay", "warmup_ratio")}
        found |= dict(self.per_task.get(task, {}))
        if (model, task) in self.runs:
            found |= dict(self.runs[model, task].values)
        return {name: value for name, value in found.items() if value is not None}


def check_spec(spec: AdapterSpec, shapes: Sequence[SiteShape]) -> None:
    """Raises UsageError for a spec that leaves out a site or whose ranks do not fit."""
    for ranks in filter(None, (spec.ranks, spec.final_ranks)):
        for shape in shapes:
            rank = ranks.get(shape.name)
            if rank is None:
                raise UsageError.of("spec.ranks", shape.name, "is missing", "Give every site a rank; 0 leaves it out")
            if not 0 <= rank <= shape.max_rank:
                raise UsageError.of("spec.ranks", rank, f"does not fit {shape.name}", f"Give 0 to {shape.max_rank}")
    if not any(spec.ranks.values()):
        raise UsageError.of("spec.ranks", 0, "is the rank of every site", "Give at least one site a rank")
