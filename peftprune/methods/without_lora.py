"""Baselines without an adapter: nothing but the head, every weight, or every bias is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from peftprune.errors import UsageError
from peftprune.strategy.baseline import Baseline, Preparation
from peftprune.strategy.budget import ArmBudget
from peftprune.strategy.options import check_option, option
from peftprune.strategy.sites import SiteShape
from peftprune.strategy.spec import AdapterSpec, ParameterGroup


def train_head(model: nn.Module, head: Sequence[str]) -> None:
    """Let the head be trained, as it is by every method."""
    for name in head:
        model.get_submodule(name).requires_grad_(True)


class HeadOnly(Baseline):
    """Trains the head on the frozen model: what the pre-trained features give without any adapter. A control of ours.

    A generation task has no head, so there nothing is trained: what the model writes before any training.

    PEFT has no format for it; the head's tensors are stored.
    """

    name: ClassVar[str] = "head-only"
    source: ClassVar[str] = "control of ours"
    exemption: ClassVar[str | None] = "has no adapter: the head alone is trained, where the task has one"
    backward: ClassVar[Literal["none", "activations", "weights"]] = "none"

    def prepare(self, model: nn.Module, given: Preparation) -> nn.Module:
        train_head(model, given.head)
        return model


@dataclass(frozen=True)
class FullConfig:
    """Options of full.

    Attributes:
        lr_scale: factor on the run's learning rate, above 0. All weights at an adapter's rate leave the pre-trained
            model at once, so the default takes 0.001 to 0.00002, a usual rate for this (a convention of ours).
    """

    lr_scale: float = option(0.02, "convention of ours", "factor on the run's learning rate, for all weights")

    def __post_init__(self) -> None:
        check_option(
            0 < self.lr_scale < float("inf"),
            "full", "lr_scale", self.lr_scale, "is not positive and finite", "Give 0.02, for example",
        )  # fmt: skip


class Full(Baseline):
    """Trains every weight of the model: ordinary fine-tuning, at a learning rate of its own.

    It is the one method whose learning rate differs from the others' under a matched budget, by the option `lr_scale`
    (a convention of ours). PEFT has no format for it; all trained tensors are stored, so an arm takes as much disk as
    the model.
    """

    name: ClassVar[str] = "full"
    source: ClassVar[str] = "ordinary fine-tuning"
    exemption: ClassVar[str | None] = "trains every weight, at a learning rate of its own (lr_scale)"
    backward: ClassVar[Literal["none", "activations", "weights"]] = "weights"
    Config: ClassVar[type] = FullConfig

    def spec(self, sites: Sequence[SiteShape], budget: ArmBudget) -> AdapterSpec:
        return AdapterSpec(ranks={}, groups={"head": ParameterGroup(lr_scale=self.config.lr_scale)})

    def prepare(self, model: nn.Module, given: Preparation) -> nn.Module:
        return model.requires_grad_(True)


class BitFit(Baseline):
    """Trains the bias terms and the head; every other weight stays frozen (stated in the paper).

    All biases of the model count, those of layer norms, embeddings and pooler included (a convention of ours). Models
    without biases, such as Llama, are refused. PEFT has no format for it; the trained tensors are stored.

    Source: Ben Zaken, Ravfogel and Goldberg, ACL 2022, arXiv 2106.10199.
    """

    name: ClassVar[str] = "bitfit"
    source: ClassVar[str] = "Ben Zaken, Ravfogel and Goldberg, ACL 2022"
    exemption: ClassVar[str | None] = "its size is fixed: the model's bias terms"

    def prepare(self, model: nn.Module, given: Preparation) -> nn.Module:
        biases = [p for n, p in model.named_parameters() if n.rpartition(".")[2] == "bias"]
        in_head = {id(p) for name in given.head for p in model.get_submodule(name).parameters()}
        if all(id(p) in in_head for p in biases):
            raise UsageError.of(
                "method", self.name, "finds no bias terms in this model", "Leave bitfit out, or take another model"
            )
        for bias in biases:
            bias.requires_grad_(True)
        train_head(model, given.head)
        return model
