"""What a method is: the interface every rank-pruning strategy implements, and the objects that cross it.

A strategy reads a `StepView` and returns decisions. It never touches a tensor: `peftprune.surgery` applies every
`PruningPlan`, and one trainer drives all strategies through the same events (see `peftprune.trainer`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftprune.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from peftprune.budget import ArmBudget
    from peftprune.phases import PhaseRange
    from peftprune.sites import LiveTensors, Site, SiteShape

Mark = Literal["paper", "authors' code", "secondary summary", "convention of ours"]


class Signal(StrEnum):
    """An activation statistic that a strategy may ask for. Values cover the current optimizer step only."""

    INPUT_NORM = "input_norm"
    """Per site a (d_in,) tensor: the L2 norm of each input feature over the step's tokens, padding excluded."""

    OUTPUT_ENERGY = "output_energy"
    """Per site a scalar tensor: the sum over the step's tokens of ‖scaling · B A x‖², padding excluded."""

    INPUT_MOMENTS = "input_moments"
    """Per site a (d_in + 1, d_in + 1) tensor: the sum of y yᵀ over the step's tokens, where y is the input with a 1
    appended, padding excluded. So it holds the second moments, the sums and the number of tokens. Sites that read the
    same input get the same tensor object. It costs d_in² a token: name the phases that need it."""


@dataclass(frozen=True)
class ParameterGroup:
    """Optimizer settings of one kind of tensor.

    Attributes:
        lr_scale: factor on the run's learning rate, at least 0. At 0 the tensors have gradients, but only plans change
            them: for methods that take steps of their own.
        lr: a learning rate of their own instead, above 0; the run's schedule scales it too.
        weight_decay: None takes the run's.
        trained: for "A" and "B": False leaves them as they start. They still count as stored parameters.
    """

    lr_scale: float = 1.0
    lr: float | None = None
    weight_decay: float | None = None
    trained: bool = True


def _default_groups() -> dict[str, ParameterGroup]:
    return {
        "A": ParameterGroup(),
        "B": ParameterGroup(),
        "gate": ParameterGroup(weight_decay=0.0),
        "head": ParameterGroup(),
    }


@dataclass(frozen=True)
class AdapterSpec:
    """What a method asks for before training.

    Attributes:
        ranks: site name to starting rank, from 0 (no adapter at that site) to min(d_in, d_out).
        final_ranks: site name to the rank it will end at; None means `ranks` stay.
        decided_in_training: True where the final allocation depends on what training shows; `final_ranks` is then
            only the starting point and the budget is met by a later plan.
        density: expected share of non-zero entries at the end, per tensor (1.0 where nothing is zeroed).
        gate: none, one gate value per rank component, or one per site, between A and B.
        gate_init: initial value of every gate.
        scaling: factor on B A; None takes the run's.
        relative_scaling: site name to a factor on that scaling, where a rule makes it differ; 1 elsewhere.
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
    groups: Mapping[str, ParameterGroup] = field(default_factory=_default_groups)


@dataclass(frozen=True)
class Phase:
    """A range of steps inside the one training run.

    Its length is a `share` of all steps, or a number of `passes` over its own data, or, when both are None, whatever
    the other phases leave. At most one phase may leave both out.

    Attributes:
        name: shown in tables and ledgers.
        share: 0 < share ≤ 1.
        passes: passes over the phase's data (1.0 = each example once), above 0.
        kind: "train" updates weights; "forward" runs the model in eval mode without gradients, for statistics. Both
            are charged to the budget.
        data: "all", or a fraction in (0, 1): a stratified sample of the training set, the same in every phase that
            names the same fraction.
        restart_schedule: the learning-rate schedule, warm-up included, begins anew with this phase.
        reset_optimizer: the optimizer's state is cleared when this phase begins.
        signals: which of the strategy's signals are collected in this phase; None for all.
    """

    name: str
    share: float | None = None
    passes: float | None = None
    kind: Literal["train", "forward"] = "train"
    data: float | Literal["all"] = "all"
    restart_schedule: bool = False
    reset_optimizer: bool = False
    signals: frozenset[Signal] | None = None


@dataclass(frozen=True)
class PruningPlan:
    """A decision about the adapters. Immutable; an empty plan changes nothing.

    Fields are applied in this order: drop, keep, reinit, share, grow, assign, zero, reset_optimizer. Rank indices refer
    to the tensors that the view showed; masks and values have the shape that the parts before them leave.

    Attributes:
        keep: site to the rank components that stay, ascending; the others are cut out of A, B, gate and the
            optimizer's state. An empty list drops the site.
        zero: site to boolean masks in the tensor's shape; True entries are set to zero.
        moments: whether the optimizer's moments of zeroed entries stay ("keep") or are zeroed with them ("zero").
        grow: site to the number of rank components to append; the function does not change (new columns of B are 0).
        share: groups of sites that from now on hold the same A and B (those of the first site named).
        drop: sites whose adapter is removed.
        reinit: site to the rank at which its A and B start afresh.
        assign: site to new values of the same shape.
        reset_optimizer: clear the optimizer's state.
        scores: importance of the sites behind the decision, from 0; kept in the trace, changes nothing. A method's
            docstring says what its scores mean.
        reason: one line for the trace.
    """

    keep: Mapping[str, Sequence[int]] = field(default_factory=dict)
    zero: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    moments: Literal["keep", "zero"] = "keep"
    grow: Mapping[str, int] = field(default_factory=dict)
    share: Sequence[Sequence[str]] = ()
    drop: frozenset[str] = frozenset()
    reinit: Mapping[str, int] = field(default_factory=dict)
    assign: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    reset_optimizer: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_empty(self) -> bool:
        """True when applying the plan would change nothing."""
        parts = (self.keep, self.zero, self.grow, self.share, self.drop, self.reinit, self.assign)
        return not any(parts) and not self.reset_optimizer


@dataclass(frozen=True)
class StepView:
    """What a strategy may see. Read-only: no evaluation result, no task name, no optimizer.

    Attributes:
        step: the current optimizer step; the first is 1.
        total_steps: steps of the whole run.
        phase: the phase this step belongs to, with its first and last step.
        budget: the arm's budget in integers.
        sites: site name to `Site`, whose tensors are detached and whose gradients are those of this step.
        signals: the declared signals of this step, by signal and site name.
        rng: the strategy's own generator; nothing else draws from it.
    """

    step: int
    total_steps: int
    phase: PhaseRange
    budget: ArmBudget
    sites: Mapping[str, Site]
    signals: Mapping[Signal, Mapping[str, Tensor]]
    rng: torch.Generator


def option(default: Any, mark: Mark, help: str) -> Any:
    """A config field that says where its default comes from: the paper, the authors' code, or a convention of ours."""
    return field(default=default, metadata={"mark": mark, "help": help})


@dataclass(frozen=True)
class NoOptions:
    """The config of a method that has nothing to set."""


class RankPruningStrategy(ABC):
    """One method. Subclass it, set `name`, override what differs; every other default is plain LoRA.

    Options live in a frozen dataclass named by `Config`, which validates itself. `MyStrategy(option=value)` and
    `MyStrategy(config)` are both accepted.

    Class attributes:
        name: the method's name in tables and on the command line.
        source: the paper, with its year; shown by `peftprune methods`.
        prunes: what is decided: "ranks", "entries", "sites" or "nothing".
        signals: activation statistics to be collected.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    prunes: ClassVar[str] = "ranks"
    signals: ClassVar[frozenset[Signal]] = frozenset()
    Config: ClassVar[type] = NoOptions

    def __init__(self, config: Any = None, **options: Any) -> None:
        if config is not None and options:
            raise UsageError.of(f"{self.name} options", options, "came together with a config", "Give one of the two")
        self.config = config if config is not None else build_config(self.name, self.Config, options)

    @property
    def depends_on(self) -> str | None:
        """Label of the arm whose outcome this one needs; None for most.

        That arm of the same task, budget and seed then runs first, and `budget.outcome` holds how it ended: `spec` is
        called without it when the study is planned (the ranks are not known yet, so `decided_in_training` is True),
        and again with it before this arm runs.
        """
        return None

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        """The starting adapters. Default: uniform rank at the budget."""
        return AdapterSpec(ranks=budget.solve(sites))

    def phases(self, budget: ArmBudget) -> list[Phase]:
        """The ranges of steps. Default: one phase, all data."""
        return [Phase("train")]

    def paper(self) -> PaperSettings:
        """The published setting, used under `budget="paper"`. Default: nothing published beyond the run's settings."""
        return PaperSettings()

    def start(self, view: StepView) -> None:
        """Called once before the first step; prepare own state here."""
        return

    def before_step(self, view: StepView) -> Mapping[str, Tensor] | None:
        """Fixed (r,) multipliers on rank components for this step, by site; None leaves all at 1."""
        return None

    def penalty(self, sites: Mapping[str, LiveTensors]) -> Tensor | None:
        """A differentiable scalar added to the training loss (never to the evaluation loss); None adds nothing."""
        return None

    def observe(self, view: StepView) -> None:
        """Called before the optimizer step, with clipped gradients and this step's signals."""
        return

    def decide(self, view: StepView) -> PruningPlan:
        """Called after the optimizer step: new weights, the gradients that led to them."""
        return PruningPlan()

    def end_phase(self, view: StepView) -> PruningPlan:
        """Called after the last step of a phase; no gradients. `view.phase` is the phase that ends."""
        return PruningPlan()

    def state_dict(self) -> dict[str, Any]:
        """Own state as tensors, numbers, strings, lists and dicts. Default: none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        return


@dataclass(frozen=True)
class PaperSettings:
    """A method's own published setting; None means that no accessible source says it, and the run's value holds.

    `rank` is the published final rank where it is uniform. `per_task` maps a task name to training arguments.
    """

    rank: int | None = None
    scaling: float | None = None
    weight_decay: float | None = None
    warmup_ratio: float | None = None
    per_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """What a baseline is given beside the model.

    Attributes:
        budget: the arm's budget in integers.
        sites: the layers that rank methods adapt.
        spec: what the baseline's own `spec` returned.
        head: names of the head's modules, drawn from the seed already. Every method trains them.
        scaling: the run's factor on B A.
        lora_dropout: dropout on adapters' input, in [0, 1).
        seed: the arm's; initial values come from streams of it (`peftprune.rng`), never from the global one.
    """

    budget: ArmBudget
    sites: Sequence[SiteShape]
    spec: AdapterSpec
    head: Sequence[str]
    scaling: float
    lora_dropout: float
    seed: int


class Baseline(ABC):
    """A method that is not rank pruning: it prepares the model once and is then trained like every other arm.

    Class attributes:
        name: the method's name in tables.
        source: the paper, with its year; shown by `peftprune methods`.
        exemption: why it cannot meet an arbitrary parameter budget, shown in every table; None if it can. The budget
            of one that can is verified as a strategy's is.
        backward: what its backward pass computes in the base model: "none", the gradients of "activations" (as every
            adapter needs), or those of "weights" too. For the ledger's FLOPs.
        reads_weights: it computes with the frozen weights themselves, not only with their products, so that they keep
            their precision.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    prunes: ClassVar[str] = "nothing"
    exemption: ClassVar[str | None] = None
    backward: ClassVar[Literal["none", "activations", "weights"]] = "activations"
    reads_weights: ClassVar[bool] = False
    Config: ClassVar[type] = NoOptions

    def __init__(self, config: Any = None, **options: Any) -> None:
        if config is not None and options:
            raise UsageError.of(f"{self.name} options", options, "came together with a config", "Give one of the two")
        self.config = config if config is not None else build_config(self.name, self.Config, options)

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        """The ranks it adapts the sites with, if it has any, and the optimizer's settings. Default: no ranks.

        The trained tensors that are neither A nor B are of the group "head", whatever they are.
        """
        return AdapterSpec(ranks={})

    def paper(self) -> PaperSettings:
        """The published setting, used under `budget="paper"`. Default: nothing published beyond the run's settings."""
        return PaperSettings()

    def multiplied(self, sites: Sequence[SiteShape], spec: AdapterSpec) -> tuple[int, int]:
        """Entries of the matrices it adds, each multiplied once per token, and how many of them are trained.

        For the ledger's FLOPs. Default: A and B of the spec's ranks, all trained.
        """
        entries = sum(spec.ranks.get(s.name, 0) * s.unit_cost for s in sites)
        return entries, entries

    @abstractmethod
    def prepare(self, model: nn.Module, given: Preparation) -> nn.Module:
        """Return the model to train: what is to be trained has `requires_grad`, the head included.

        The model is the arm's own copy. It may lie on the meta device, where planning only counts parameters.
        """

    def penalty(self, model: nn.Module) -> Tensor | None:
        """As `RankPruningStrategy.penalty`, of the prepared model. Default: none."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after every optimizer step (the first is 1), while its gradients are still there.

        May change values of the model, not shapes: a library's own method does what it does. Default: nothing.
        """
        return

    def finish(self, model: nn.Module) -> Mapping[str, int] | None:
        """Called once after the last step, before the model is counted and evaluated; shapes may change.

        Returns:
            Site to the rank that is left, where training decided on ranks; None where those of `spec` stay.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """What `after_step` keeps beside the model, as `RankPruningStrategy.state_dict`. Default: none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the model was prepared before."""
        return


def build_config(method: str, config: type, options: Mapping[str, Any]) -> Any:
    """Make a method's config, refusing unknown options with a suggestion.

    Raises:
        UsageError: for an option the method does not have; the config's own checks raise theirs.
    """
    known = {f.name: f for f in fields(config)}
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Options: {', '.join(known) or 'none'}"
            raise UsageError.of(f"{method} option", name, "does not exist", hint)
    missing = [
        n for n, f in known.items() if n not in options and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise UsageError.of(f"{method} options", sorted(options), f"lack {missing}", f"Give {missing[0]}=...")
    for name, value in options.items():
        _check_type(method, name, value, known[name].default)
    return config(**options)


def _check_type(method: str, name: str, value: object, default: object) -> None:
    """Refuse a value that is of another type than the default, so that range checks need not mind."""
    kind = "number" if isinstance(default, float) else type(default).__name__
    accepted = {"number": (int, float), "bool": (bool,), "int": (int,), "str": (str,)}.get(kind)
    if accepted is None or (isinstance(value, accepted) and (kind == "bool" or not isinstance(value, bool))):
        return
    raise UsageError.of(f"{method}.{name}", value, f"is no {kind}", f"Give {default!r}, for example")


def check_option(ok: bool, method: str, field_name: str, value: object, problem: str, cure: str) -> None:
    """Raise the common error for an option out of range unless `ok`."""
    if not ok:
        raise UsageError.of(f"{method}.{field_name}", value, problem, cure)
