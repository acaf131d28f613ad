"""`Method`: what planning and the training loop ask of every method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from peftprune.errors import UsageError
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.lazy import Module, Tensor
from peftprune.strategy.options import NoOptions, build_config
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import Site, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView

Decides = Literal["at the start", "before training", "once", "repeatedly", "at the end"]
"""When a method decides.

"at the start": its initial ranks differ between sites. "before training": after a pass without training. "once": at one
step. "repeatedly": at several steps. "at the end": after the last step.
"""

Action = Literal[
    "cut ranks",
    "redistribute ranks",
    "grow ranks",
    "remove sites",
    "share adapters",
    "zero entries",
    "set values",
    "restart adapters",
]
"""What the plans of a method do, apart from growth that only spends the last units of a budget.

"redistribute ranks": ranks that were equal end more than 1 apart. "set values": gates or factors get new values.
"restart adapters": they are initialised anew.
"""


@dataclass(frozen=True)
class Preparation:
    """What `Baseline.prepare` receives beside the model.

    Attributes:
        budget: the arm's budget in integers.
        sites: the layers that rank methods adapt.
        spec: what the baseline's own `spec` returned.
        head: names of the head's modules, already initialised from the seed. Every method trains them.
        scaling: the run's factor on B A.
        lora_dropout: dropout on adapters' input, in [0, 1).
        seed: the arm's seed. Draw initial values from its streams (`peftprune.strategy.rng`), not from the global one.
    """

    budget: ArmBudget
    sites: Sequence[SiteShape]
    spec: AdapterSpec
    head: Sequence[str]
    scaling: float
    lora_dropout: float
    seed: int


class Method(ABC):
    """The common base of `RankPruningStrategy` and `Baseline`; subclass one of these.

    Options live in a frozen dataclass named by `Config`, which validates itself. `MyMethod(option=value)` and
    `MyMethod(config)` are both accepted.

    Class attributes:
        name: the method's name in tables and on the command line.
        source: the paper, with its year; shown by `peftprune methods`.
        prunes: what is decided: "ranks", "entries", "sites" or "nothing".
        decides: when the method decides.
        actions: what its plans do.
        signals: activation statistics to be collected.
        exemption: why the method cannot meet an arbitrary parameter budget, shown in every table. None if it can; its
            budget is then verified after training.
        backward: gradients that the backward pass computes in the base model: "none", those of "activations" (as every
            adapter needs), or those of "weights" too. For the ledger's FLOPs.
        reads_weights: the method computes with the frozen weights themselves, not only with their products, so they
            keep their precision.
        adapts: the method trains an adapter, so that the base model's own weights may be quantised.
        revision: number of times that a version of the package changed the method's results; part of its arms' hash.
        prepares_model: the method prepares the model itself (`prepare`); otherwise LoRA is injected as `spec` says.
        state_names: the attributes that a checkpoint holds; each starts as an empty dict where the class sets no value.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    prunes: ClassVar[str] = "nothing"
    decides: ClassVar[tuple[Decides, ...]] = ()
    actions: ClassVar[tuple[Action, ...]] = ()
    signals: ClassVar[frozenset[Signal]] = frozenset()
    exemption: ClassVar[str | None] = None
    backward: ClassVar[Literal["none", "activations", "weights"]] = "activations"
    reads_weights: ClassVar[bool] = False
    adapts: ClassVar[bool] = True
    prepares_model: ClassVar[bool] = False
    revision: ClassVar[int] = 0
    state_names: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type] = NoOptions

    def __init__(self, config: Any = None, **options: Any) -> None:
        if config is not None and options:
            raise UsageError.of(f"{self.name} options", options, "came together with a config", "Give one of the two")
        if config is not None and not isinstance(config, self.Config):
            raise UsageError.of(f"{self.name} config", config, f"is not a {self.Config.__name__}", "Name its options")
        self.config: Any = config if config is not None else build_config(self.name, self.Config, options)
        for name in self.state_names:
            if not hasattr(self, name):
                setattr(self, name, {})

    @property
    def depends_on(self) -> str | None:
        """Label of the arm whose outcome this one needs; None for most.

        That arm of the same task, budget and seed then runs first, and `budget.outcome` holds how it ended: `spec` is
        called without it when the study is planned (the ranks are not known yet, so `decided_in_training` is True),
        and again with it before this arm runs.
        """
        return None

    @property
    def elsewhere(self) -> str | None:
        """Folder of the stored study that has the arm `depends_on`; None where it is the same study."""
        return None

    def exempt(self, sites: Sequence[SiteShape], budget: ArmBudget) -> str | None:
        """Returns why this arm does not meet the budget on these sites; None where it does. Default: `exemption`."""
        return self.exemption

    @abstractmethod
    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        """Returns the starting adapters and the optimizer settings."""

    def phases(self, budget: ArmBudget) -> list[Phase]:
        """Returns the ranges of steps. Default: one phase, all data."""
        return [Phase("train")]

    def paper(self) -> PaperSettings:
        """Returns the published setting, used under `budget="paper"`. Default: the run's settings."""
        return PaperSettings()

    def multiplied(self, sites: Sequence[SiteShape], spec: AdapterSpec) -> tuple[int, int]:
        """Returns the entries of the matrices added beside the sites, and how many of them are trained.

        Each entry is multiplied once per token. For the ledger's FLOPs.
        """
        return 0, 0

    def prepare(self, model: Module, given: Preparation) -> Module:
        """Returns the model to train. Called where `prepares_model` is True."""
        raise NotImplementedError

    def start(self, view: StepView) -> None:
        """Called once before the first step; prepare own state here."""
        return

    def before_step(self, view: StepView) -> Mapping[str, Tensor] | None:
        """Returns fixed (r,) multipliers on rank components for this step, by site; None leaves all at 1."""
        return None

    def frozen_components(self, view: StepView) -> Mapping[str, Tensor] | None:
        """Returns (r,) booleans by site: the components that this step computes with but does not train.

        Called after `before_step`. Their gradient is zero; an optimizer with moments still moves them. None trains all.
        """
        return None

    @abstractmethod
    def penalty_for(self, model: Module, sites: Mapping[str, Site]) -> Tensor | None:
        """Returns the training penalty of the model and its sites; None adds nothing."""

    def observe(self, view: StepView) -> None:
        """Called before the optimizer step, with clipped gradients and this step's signals."""
        return

    @abstractmethod
    def plan_for(self, model: Module, view: StepView) -> PruningPlan:
        """Returns the decision after an optimizer step, while its gradients are still there."""

    def end_phase(self, view: StepView) -> PruningPlan:
        """Called after the last step of a phase; no gradients. `view.phase` is the phase that ends."""
        return PruningPlan()

    def finish(self, model: Module) -> Mapping[str, int] | None:
        """Called once after the last step where `prepares_model` is True, before the model is counted and evaluated.

        Shapes may change. Returns site to the rank that is left where training decided on ranks, otherwise None.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns own state as tensors, numbers, strings, lists and dicts. Default: what `state_names` lists."""
        return {name: copy(getattr(self, name)) for name in self.state_names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for name in state.keys() & {*self.state_names}:
            setattr(self, name, copy(state[name]))
