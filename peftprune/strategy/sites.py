"""Sites: the adapted linear layers of a model, as shapes (for planning) and as live tensors (for training)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from peftprune.errors import RunError
from peftprune.strategy.lazy import Tensor, nn, peft

Stream = Literal["self", "encoder", "decoder", "cross"]


@dataclass(frozen=True)
class SiteShape:
    """One linear layer that may carry a LoRA, known by its shape alone.

    Attributes:
        name: fully qualified module name in the base model, for example
            `bert.encoder.layer.0.attention.self.query`.
        layer: depth of the transformer block that holds it, from 0, counted within its stack.
        kind: what the layer is within its block (`query`, `value`, `output.dense`, ...); the same string for the same
            role in every block. In encoder-decoder models it starts with `encoder.` or `decoder.`.
        d_in: input width.
        d_out: output width.
        stream: whose tokens it reads: "self" in models with one stack, else "encoder", "decoder", or "cross" (a key or
            value projection of cross-attention, which sits in the decoder and reads the encoder's tokens).
    """

    name: str
    layer: int
    kind: str
    d_in: int
    d_out: int
    stream: Stream = "self"

    @property
    def unit_cost(self) -> int:
        """Parameters that one unit of rank costs here: d_in + d_out."""
        return self.d_in + self.d_out

    @property
    def max_rank(self) -> int:
        """The largest rank that can add anything: min(d_in, d_out)."""
        return min(self.d_in, self.d_out)


def rank_cost(ranks: Mapping[str, int], shapes: Iterable[SiteShape]) -> int:
    """Returns the parameters of LoRA at these ranks; a site without one has rank 0."""
    return sum(ranks.get(s.name, 0) * s.unit_cost for s in shapes)


@dataclass(frozen=True)
class LiveTensors:
    """A site's trainable tensors with their gradients enabled, for differentiable penalties."""

    A: Tensor
    B: Tensor
    gate: Tensor | None


class Site:
    """One adapted linear layer of a PEFT model, read-only to everyone but `peftprune.adapters.surgery`.

    The update is ΔW = scaling · B · diag(gate) · A. Tensors are detached; they share memory with the model's, and a
    strategy must not write to them.
    """

    def __init__(self, shape: SiteShape, layer: peft.tuners.lora.LoraLayer, adapter: str) -> None:
        self.shape = shape
        self.name, self.layer, self.kind = shape.name, shape.layer, shape.kind
        self.d_in, self.d_out, self.unit_cost, self.max_rank = shape.d_in, shape.d_out, shape.unit_cost, shape.max_rank
        self._layer, self._adapter = layer, adapter

    @property
    def _lora_A(self) -> Any:
        return self._layer.lora_A[self._adapter]

    @property
    def _lora_B(self) -> Any:
        return self._layer.lora_B[self._adapter]

    @property
    def is_dropped(self) -> bool:
        """True where the site's adapter was removed."""
        return self._adapter not in self._layer.lora_A

    @property
    def rank(self) -> int:
        """Number of rank components; 0 where the site was dropped."""
        return 0 if self.is_dropped else int(self._lora_A.weight.shape[0])

    @property
    def A(self) -> Tensor:
        """(rank, d_in)."""
        return self._required("_lora_A").weight.detach()

    @property
    def B(self) -> Tensor:
        """(d_out, rank)."""
        return self._required("_lora_B").weight.detach()

    @property
    def gate(self) -> Tensor | None:
        """(rank,) or (1,), or None where the site has no gate."""
        gate = None if self.is_dropped else self._gate_parameter
        return None if gate is None else gate.detach()

    @property
    def base_weight(self) -> Tensor:
        """(d_out, d_in): the frozen weight that the update is added to, dequantised."""
        weight = peft.utils.integrations.dequantize_module_weight(self._layer.get_base_layer()).detach()
        return weight.T if self._layer.fan_in_fan_out else weight

    @property
    def grad_A(self) -> Tensor | None:
        """(rank, d_in), or None where there is no gradient."""
        return None if self.is_dropped else self._lora_A.weight.grad

    @property
    def grad_B(self) -> Tensor | None:
        """(d_out, rank), or None where there is no gradient."""
        return None if self.is_dropped else self._lora_B.weight.grad

    @property
    def grad_gate(self) -> Tensor | None:
        """Shaped like `gate`, or None."""
        gate = None if self.is_dropped else self._gate_parameter
        return None if gate is None else gate.grad

    @property
    def frozen_width(self) -> int:
        """Entries per rank that are not trained: d_in where A is frozen, d_out where B is, else 0."""
        if self.is_dropped:
            return 0
        sides = ((self._lora_A, self.d_in), (self._lora_B, self.d_out))
        return sum(width for module, width in sides if not module.weight.requires_grad)

    @property
    def scaling(self) -> float:
        """The factor on B A, unchanged by pruning."""
        return float(self._layer.scaling[self._adapter])

    @property
    def _gate_parameter(self) -> nn.Parameter | None:
        return getattr(self._lora_A, "rank_gate", None)

    def live(self) -> LiveTensors:
        """Returns the trainable tensors themselves."""
        return LiveTensors(self._lora_A.weight, self._lora_B.weight, self._gate_parameter)

    def parameters(self) -> list[nn.Parameter]:
        """Returns the trainable tensors that the site has."""
        return [tensor for tensor in vars(self.live()).values() if tensor is not None]

    def _required(self, module: str) -> Any:
        if self.is_dropped:
            raise RunError(f"site {self.name!r} was dropped and has no tensors. Skip sites whose rank is 0")
        return getattr(self, module)

    def __repr__(self) -> str:
        return f"Site({self.name!r}, rank={self.rank}, {self.d_out}×{self.d_in})"


class SiteSet(Mapping[str, Site]):
    """The sites of one PEFT model in module order, by name, with the model's adapter configuration."""

    def __init__(self, sites: Mapping[str, Site], peft_config: peft.LoraConfig) -> None:
        self._sites = dict(sites)
        self.peft_config = peft_config

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def shapes(self) -> list[SiteShape]:
        """The shapes of all sites, dropped ones included."""
        return [site.shape for site in self.values()]

    @property
    def ranks(self) -> dict[str, int]:
        """Site name to current rank."""
        return {name: site.rank for name, site in self.items()}

    def groups(self) -> list[list[Site]]:
        """Sites that hold the same tensors, together; a site that shares with none is a group of its own."""
        found: dict[int, list[Site]] = {}
        for site in self.values():
            if not site.is_dropped:
                found.setdefault(id(site._lora_A.weight), []).append(site)
        return list(found.values())

    def parameters(self) -> list[nn.Parameter]:
        """Returns every parameter of every site, tied ones once."""
        return [param for group in self.groups() for param in group[0].parameters()]

    def shared_with(self) -> dict[str, list[str]]:
        """Returns site name to the other sites that hold the same tensors."""
        shared: dict[str, list[str]] = {name: [] for name in self}
        for group in self.groups():
            for site in group:
                shared[site.name] = [other.name for other in group if other is not site]
        return shared
