"""Baselines without an adapter: they train the head only, every weight, or every bias."""

from collections.abc import Sequence
from dataclasses import dataclass

from peftprune.errors import UsageError
from peftprune.strategy import AdapterSpec, ArmBudget, Baseline, Options, ParameterGroup, Preparation, SiteShape, option
from peftprune.strategy.lazy import Module


def train_head(model: Module, head: Sequence[str]) -> None:
    for name in head:
        model.get_submodule(name).requires_grad_(True)


class HeadOnly(Baseline):
    """Trains the head on the frozen model; shows what the pre-trained features achieve without an adapter.

    A generation task has no head, so nothing is trained there and the untrained model is evaluated. PEFT has no format
    for this baseline; the head's tensors are stored.
    """

    name = "head-only"
    source = "control: no adapter"
    exemption = "has no adapter: the head alone is trained, where the task has one"
    adapts = False
    backward = "none"

    def prepare(self, model: Module, given: Preparation) -> Module:
        train_head(model, given.head)
        return model


@dataclass(frozen=True)
class FullConfig(Options):
    lr_scale: float = option(0.02, "convention", gt=0, help=
        "factor on the run's learning rate, for all weights; an adapter's rate moves all weights away from the "
        "pre-trained model at once, so the default turns 0.001 into 0.00002, a common rate for full "
        "fine-tuning")  # fmt: skip


class Full(Baseline):
    """Trains every weight of the model: ordinary fine-tuning, at a learning rate of its own.

    Its learning rate is that of the run times `lr_scale` (convention). PEFT has no format for it; all trained tensors
    are stored, so an arm takes as much disk as the model.
    """

    name = "full"
    source = "ordinary fine-tuning"
    exemption = "trains every weight, at a learning rate of its own (lr_scale)"
    adapts = False
    backward = "weights"
    Config = FullConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks={}, groups={"head": ParameterGroup(lr_scale=self.config.lr_scale)})

    def prepare(self, model: Module, given: Preparation) -> Module:
        return model.requires_grad_(True)


class BitFit(Baseline):
    """Trains the bias terms and the head; every other weight stays frozen (paper).

    All biases of the model are trained, those of layer norms, embeddings and pooler included (convention). Models
    without biases, such as Llama, are refused. PEFT has no format for it; the trained tensors are stored.
    """

    name = "bitfit"
    source = "Ben Zaken, Ravfogel and Goldberg, ACL 2022, arXiv 2106.10199"
    exemption = "its size is fixed: the model's bias terms"
    adapts = False

    def prepare(self, model: Module, given: Preparation) -> Module:
        biases = [p for n, p in model.named_parameters() if n.rpartition(".")[2] == "bias"]
        in_head = {id(p) for name in given.head for p in model.get_submodule(name).parameters()}
        if all(id(p) in in_head for p in biases):
            cure = "Leave bitfit out, or take another model"
            raise UsageError.of("method", self.name, "finds no bias terms in this model", cure)
        for bias in biases:
            bias.requires_grad_(True)
        train_head(model, given.head)
        return model
