"""`Baseline`: the interface of methods that do not prune ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from peftprune.errors import UsageError
from peftprune.strategy.actions import Action, Decides
from peftprune.strategy.options import NoOptions, build_config
from peftprune.strategy.spec import AdapterSpec, PaperSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftprune.strategy.budget import ArmBudget
    from peftprune.strategy.sites import SiteShape


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
        seed: the arm's; initial values come from streams of it (`peftprune.strategy.rng`), never from the global one.
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
    decides: ClassVar[tuple[Decides, ...]] = ()
    actions: ClassVar[tuple[Action, ...]] = ()
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
