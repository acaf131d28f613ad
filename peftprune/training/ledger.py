"""The ledger: parameters, memory, time and FLOPs of an arm, counted from its tensors and batches."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import psutil
import torch
from torch import Tensor, nn

from peftprune.models.layers import base_linear_cost
from peftprune.strategy import AdapterSpec, ArmBudget, SiteSet


@dataclass(frozen=True)
class Counts:
    """Entries of A and B: tied tensors once, as a budget counts; not zero; and with a copy for every sharing site."""

    stored: int
    nonzero: int
    expanded: int


def count_adapter(sites: SiteSet) -> Counts:
    """Counts the adapters' parameters as they are now. Gates are not counted: they are folded into B at the end."""
    stored = nonzero = expanded = 0
    for group in sites.groups():
        tensors = [group[0].A, group[0].B]
        size = sum(t.numel() for t in tensors)
        stored += size
        expanded += size * len(group)
        nonzero += sum(int(torch.count_nonzero(t)) for t in tensors)
    return Counts(stored, nonzero, expanded)


def stored_parameters(sites: SiteSet) -> int:
    """Returns the entries of A and B, tied tensors once. Reads shapes only."""
    return sum(group[0].rank * group[0].unit_cost for group in sites.groups())


def headroom(sites: SiteSet, nonzero_share: Mapping[str, float]) -> float | None:
    """Returns the cost of the cheapest unit of rank that still fits at a live site; None where all are full.

    `nonzero_share` is the expected density of "A" and "B" where a budget counts non-zero parameters; empty otherwise.
    """
    a, b = nonzero_share.get("A", 1.0), nonzero_share.get("B", 1.0)
    growing = (group[0] for group in sites.groups() if group[0].rank < group[0].max_rank)
    return min((site.d_in * a + site.d_out * b for site in growing), default=None)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))


def release_memory() -> None:
    """Returns freed memory to the system before an arm, so that no arm counts the memory of another."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        # The C library keeps freed blocks; batches of many lengths leave gigabytes of them.
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Returns bytes: the device's allocation peak on CUDA, otherwise the process's current resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class BaseCost:
    """The frozen model's cost per token, for the analytic FLOPs.

    Attributes:
        linear_params: weights of the linear layers inside the transformer blocks.
        attention_width: hidden size times number of attention layers.
        backward: see `Method.backward`.
        multiplied, multiplied_trained: see `Method.multiplied`.
        stream_share: the share of all tokens that a stream's sites read, 1 where it is not named; for models whose
            encoder and decoder read different texts. `linear_params` is weighted by it already.
    """

    linear_params: int
    attention_width: int
    backward: Literal["none", "activations", "weights"] = "activations"
    multiplied: int = 0
    multiplied_trained: int = 0
    stream_share: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, stream_share: Mapping[str, float] | None = None) -> BaseCost:
        """Returns the cost of a model, from its configuration and shapes.

        Raises AttributeError for a configuration without a width of its own.
        """
        share, cost = dict(stream_share or {}), base_linear_cost(model)
        linear = sum(n * share.get(stream, 1.0) for (stream, _), n in cost["linear_params_per_layer"].items())
        return cls(round(linear), cost["hidden_size"] * cost["attention_layers"], stream_share=share)

    def step_flops(self, tokens: int, length: float, sites: SiteSet, train: bool) -> tuple[float, float]:
        """Returns the FLOPs of one pass over `tokens` padded tokens: (base model, adapters).

        A multiply-add counts as two. Forward: 2 per weight and token, and 4 · length · width per token for attention's
        two products, where `length` is the mean padded one. Training adds the gradient of the activations for frozen
        weights (as much again; twice for attention, whose both factors need one) and of activations and weights for the
        adapters (twice again; once for factors that are not trained). Where a baseline trains the base model's weights,
        their gradients are added; where it trains only the head, none are. Element-wise work, embeddings and the head
        are left out.
        """
        linear = 2.0 * self.linear_params * tokens
        attention = 4.0 * length * self.attention_width * tokens
        share = {name: self.stream_share.get(s.shape.stream, 1.0) for name, s in sites.items()}
        weights = sum(s.rank * s.unit_cost * share[n] for n, s in sites.items()) + self.multiplied
        adapter = 2.0 * tokens * weights
        if not train or self.backward == "none":
            return linear + attention, adapter
        frozen = sum(s.rank * s.frozen_width * share[n] for n, s in sites.items()) + self.multiplied
        frozen -= self.multiplied_trained
        linear_passes = 3 if self.backward == "weights" else 2
        return linear_passes * linear + 3 * attention, 2.0 * tokens * (3 * weights - frozen)


@dataclass
class Ledger:
    """The costs of one arm. Seconds are wall-clock; everything else is exact.

    Attributes:
        peak_params: largest number of stored adapter parameters at any step.
        final_params: stored adapter parameters at the end, tied tensors once.
        nonzero_params: those that are not zero at the end.
        unique_params: the same as `final_params`.
        expanded_params: final parameters when sharing sites get a copy each, as PEFT's files hold them.
        head_params: trainable parameters outside the adapters.
        trained_params: the trained ones among the final parameters; fewer where a method freezes a factor.
        optimizer_bytes: largest optimizer state at the end of a phase.
        adapter_bytes: size of the PEFT adapter's weights file.
        peak_memory_bytes: largest memory at logging steps.
        base_bytes: size of the frozen weights in memory.
        steps, samples, tokens: all passes charged to the budget; tokens without padding.
        forward_only_samples: those of them that were forward-only.
        base_flops, adapter_flops: analytic, all passes (see `BaseCost.step_flops`).
        phase_seconds: wall-clock seconds by phase.
        evaluation_seconds: wall-clock seconds of evaluation, not part of the phases.
        drift: how far the model moved on another text (see `training.drift`); None where it was not measured.
    """

    peak_params: int = 0
    final_params: int = 0
    nonzero_params: int = 0
    unique_params: int = 0
    expanded_params: int = 0
    head_params: int = 0
    trained_params: int = 0
    optimizer_bytes: int = 0
    adapter_bytes: int = 0
    peak_memory_bytes: int = 0
    base_bytes: int = 0
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    forward_only_samples: int = 0
    base_flops: float = 0.0
    adapter_flops: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    evaluation_seconds: float = 0.0
    drift: float | None = None

    @property
    def seconds(self) -> float:
        """Training seconds, evaluation excluded."""
        return sum(self.phase_seconds.values())

    def spent(self, sites: SiteSet, budget: ArmBudget, spec: AdapterSpec) -> tuple[int, float | None]:
        """Returns the final parameters that the budget counts, and `headroom`."""
        if budget.count == "nonzero":
            return self.nonzero_params, headroom(sites, spec.density)
        return self.final_params, headroom(sites, {})

    def add_final(self, sites: SiteSet, model: nn.Module) -> None:
        counts = count_adapter(sites)
        self.final_params = self.unique_params = counts.stored
        self.nonzero_params = counts.nonzero
        self.expanded_params = counts.expanded
        self.head_params = head_parameters(model, sites)
        self.trained_params = counts.stored - sum(group[0].rank * group[0].frozen_width for group in sites.groups())

    def add_baseline(self, model: nn.Module, head: Sequence[str]) -> None:
        """Counts the tensors that a baseline trained outside the head, whose modules end in the given names."""
        adapted, in_head = trained_tensors(model, head)
        size = sum(p.numel() for p in adapted)
        self.final_params = self.unique_params = self.expanded_params = self.trained_params = size
        self.peak_params = max(self.peak_params, size)
        self.nonzero_params = sum(int(torch.count_nonzero(p)) for p in adapted)
        self.head_params = sum(p.numel() for p in in_head)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"flops": self.base_flops + self.adapter_flops, "seconds": self.seconds}


def trained_tensors(model: nn.Module, head: Sequence[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns the trained tensors outside the head and inside it; the head's modules end in the given names."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inside = {n for n in trained if any(f".{h}." in f".{n}" for h in head)}
    return [p for n, p in trained.items() if n not in inside], [trained[n] for n in trained if n in inside]


def head_parameters(model: nn.Module, sites: SiteSet) -> int:
    adapter = {id(p) for p in sites.parameters()}
    return sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in adapter)
