"""What a method is: the interface every rank-pruning strategy implements, and the objects that cross it.

A strategy reads a `StepView` and returns decisions. It never touches a tensor: `peftprune.adapters.surgery` applies
every `PruningPlan`, and one trainer drives all strategies through the same events (see `peftprune.training.trainer`).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftprune.errors import UsageError
from peftprune.strategy.actions import Action, Decides
from peftprune.strategy.options import NoOptions, build_config
from peftprune.strategy.phases import Phase
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.strategy.spec import AdapterSpec, PaperSettings
from peftprune.strategy.view import StepView

if TYPE_CHECKING:
    from torch import Tensor

    from peftprune.strategy.budget import ArmBudget
    from peftprune.strategy.sites import LiveTensors, SiteShape


class RankPruningStrategy(ABC):
    """One method. Subclass it, set `name`, override what differs; every other default is plain LoRA.

    Options live in a frozen dataclass named by `Config`, which validates itself. `MyStrategy(option=value)` and
    `MyStrategy(config)` are both accepted.

    Class attributes:
        name: the method's name in tables and on the command line.
        source: the paper, with its year; shown by `peftprune methods`.
        prunes: what is decided: "ranks", "entries", "sites" or "nothing".
        decides: when it decides.
        actions: what its plans do.
        signals: activation statistics to be collected.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    prunes: ClassVar[str] = "ranks"
    decides: ClassVar[tuple[Decides, ...]] = ()
    actions: ClassVar[tuple[Action, ...]] = ()
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
