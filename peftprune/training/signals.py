"""Collectors of the activation statistics that strategies declare.

They run only inside the model's own forward pass of a training step (so recomputation under activation checkpointing
adds nothing), sum over the micro-batches of a step on the device, and never synchronise with the host. Padding is
excluded by the attention mask of the stream that a site reads. A call on anything but the batch's tokens, such as
DeBERTa's relative positions, is told by its shape and not counted.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftprune.errors import RunError
from peftprune.strategy import Signal, Site, SiteSet
from peftprune.training.distributed import sum_over_processes, world_size

_OF_OUTPUTS = frozenset({Signal.OUTPUT_ENERGY, Signal.DELTA_GRADIENT})


class Collectors:
    """Hooks on a model that collect `signals` of the sites between `arm` and `take`."""

    def __init__(self, model: nn.Module, sites: SiteSet, signals: frozenset[Signal]) -> None:
        self.sites = sites
        self.signals = signals
        self._wanted: frozenset[Signal] = frozenset()
        self._inputs: dict[str, Any] | None = None
        self.labels: Tensor | None = None
        """The labels of the next forward pass, for trainers that do not hand them to the model."""
        self._sums: dict[tuple[Signal, str, int], Tensor] = {}
        self._read: dict[str, Tensor] = {}
        # A call is a site and how often it was called before in the same forward pass. A call's leader is the first
        # call that reads the same input: found in the first forward pass, by tensor identity.
        self.leader: dict[tuple[str, int], tuple[str, int]] = {}
        self._seen: list[tuple[Tensor, tuple[str, int]]] = []
        self._calls: Counter[str] = Counter()
        # Site to the shapes of calls that were not counted: what it read, and the batch.
        self._others: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._handles = []
        if not signals:
            return
        self._handles.append(model.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._handles.append(model.register_forward_hook(self._leave, always_call=True))
        for site in sites.values():
            if site.is_dropped:
                continue
            if signals & {Signal.INPUT_NORM, Signal.INPUT_MOMENTS, Signal.LABEL_MOMENTS}:
                self._handles.append(site._layer.register_forward_pre_hook(partial(self._note_input, site)))
            if Signal.OUTPUT_ENERGY in signals:
                self._handles.append(site._lora_B.register_forward_hook(partial(self._note_output, site)))
            if Signal.DELTA_GRADIENT in signals:
                self._handles.append(site._lora_A.register_forward_pre_hook(partial(self._note_read, site)))
                self._handles.append(site._lora_B.register_forward_hook(partial(self._note_written, site)))

    def arm(self, signals: frozenset[Signal] | None = None) -> None:
        """Starts collecting for one optimizer step: all signals, or those named."""
        self._wanted = self.signals if signals is None else self.signals & signals
        self._sums.clear()
        self._others.clear()

    def take(self) -> Mapping[Signal, Mapping[str, Tensor]]:
        """Stops collecting and returns this step's signals, over all processes, by signal and site.

        Raises RunError if a site read something, but never the batch's tokens.
        """
        self._wanted = frozenset()
        sum_over_processes(self._sums)
        found: dict[Signal, dict[str, Tensor]] = {signal: {} for signal in self.signals}
        sums = [(key, key[1]) for key in self._sums if key[0] in _OF_OUTPUTS]
        inputs = self.signals - _OF_OUTPUTS
        sums += [((signal, *leader), name) for (name, _), leader in self.leader.items() for signal in inputs]
        for key, name in sums:
            if key in self._sums and not self.sites[name].is_dropped:
                values = found[key[0]]
                values[name] = values[name] + self._sums[key] if name in values else self._sums[key]
        for name, (read, batch) in self._others.items():
            if not (self.sites[name].is_dropped or any(name in values for values in found.values())):
                raise RunError(
                    f"site {name!r} reads tokens of shape {read} but the {self.sites[name].shape.stream} batch has "
                    f"shape {batch}. Leave this site out of target_modules"
                )
        if Signal.INPUT_NORM in found:
            found[Signal.INPUT_NORM] = {name: total.sqrt() for name, total in found[Signal.INPUT_NORM].items()}
        if Signal.DELTA_GRADIENT in found:
            # As the adapters' gradients are averaged.
            found[Signal.DELTA_GRADIENT] = {n: s / world_size() for n, s in found[Signal.DELTA_GRADIENT].items()}
        return found

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs = kwargs if self._wanted else None
        self._seen.clear()
        self._calls.clear()

    def _leave(self, *_: Any) -> None:
        self._inputs = None
        self._seen.clear()

    def _note_input(self, site: Site, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._inputs is None:
            return
        x = args[0]
        call = (site.name, self._calls[site.name])
        self._calls[site.name] += 1
        if not self._reads_batch(site, x):
            return
        if (leader := self.leader.get(call)) is None:
            leader = next((first for seen, first in self._seen if seen is x), call)
            self.leader[call] = leader
            self._seen.append((x, leader))
        if leader != call:
            return
        mask = self._mask(site, x)
        if Signal.INPUT_NORM in self._wanted:
            self._add((Signal.INPUT_NORM, *call), _squares_by_feature(x.detach(), mask))
        if Signal.INPUT_MOMENTS in self._wanted:
            self._add((Signal.INPUT_MOMENTS, *call), _moments(x.detach(), mask))
        if Signal.LABEL_MOMENTS in self._wanted:
            self._add((Signal.LABEL_MOMENTS, *call), _moments(x.detach(), self._labelled(site, x, mask)))

    def _note_output(self, site: Site, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self._inputs is None or Signal.OUTPUT_ENERGY not in self._wanted:
            return
        if self._reads_batch(site, output):
            squares = _squares_by_feature(output.detach(), self._mask(site, output)).sum()
            self._add((Signal.OUTPUT_ENERGY, site.name, 0), squares * site.scaling**2)

    def _note_read(self, site: Site, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._read[site.name] = args[0].detach()

    def _note_written(self, site: Site, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Sums (∂loss/∂output)ᵀ · input. Activation checkpointing has the gradient only where it recomputes."""
        x = self._read.pop(site.name)
        if Signal.DELTA_GRADIENT in self._wanted and output.requires_grad:
            output.register_hook(partial(self._add_product, site, x))

    def _add_product(self, site: Site, x: Tensor, gradient: Tensor) -> None:
        # The layer multiplies B A x by the scaling, and so its gradient.
        product = gradient.flatten(0, -2).float().T @ x.flatten(0, -2).float() / site.scaling
        self._add((Signal.DELTA_GRADIENT, site.name, 0), product)

    def _add(self, key: tuple[Signal, str, int], value: Tensor) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _reads_batch(self, site: Site, x: Tensor) -> bool:
        """Whether x, (batch, length, d) or (tokens, d), holds the batch's tokens; shapes are all there is to tell."""
        assert self._inputs is not None
        batch = _batch_shape(self._inputs, site.shape.stream)
        if x.dim() == 2 or batch is None or x.shape[:2] == batch:
            return True
        self._others[site.name] = tuple(x.shape[:2]), tuple(batch)
        return False

    def _labelled(self, site: Site, x: Tensor, mask: Tensor | None) -> Tensor | None:
        assert self._inputs is not None
        labels = self._inputs.get("labels", self.labels)
        if labels is None or site.shape.stream not in ("self", "decoder") or labels.shape != x.shape[:2]:
            return mask
        return labels != -100 if mask is None else (labels != -100) & mask.bool()

    def _mask(self, site: Site, x: Tensor) -> Tensor | None:
        assert self._inputs is not None
        return None if x.dim() == 2 else token_mask(self._inputs, site.shape.stream)


def token_mask(inputs: Mapping[str, Any], stream: str) -> Tensor | None:
    """Returns the (batch, length) mask of real tokens that a stream reads; None where every token is real.

    The stream is that of `SiteShape`: "cross" reads the encoder's tokens. `inputs` are the model's keyword arguments.
    """
    encoder = inputs.get("attention_mask")
    if stream != "decoder":
        return encoder
    if inputs.get("decoder_attention_mask") is not None:
        return inputs["decoder_attention_mask"]
    labels = inputs.get("labels")
    if labels is not None and labels.dim() == 2:
        return labels != -100
    if encoder is None or inputs.get("decoder_input_ids") is not None:
        return None
    # The decoder of a classifier reads the input shifted right by one: its first token is always real.
    return torch.cat([torch.ones_like(encoder[:, :1]), encoder[:, :-1]], dim=1)


def _batch_shape(inputs: Mapping[str, Any], stream: str) -> torch.Size | None:
    """Returns (batch, length) of the tokens that a stream reads; None where the model's inputs do not tell."""
    if (mask := token_mask(inputs, stream)) is not None:
        return mask.shape
    prefix = "decoder_" if stream == "decoder" else ""
    given = (inputs.get(f"{prefix}{name}") for name in ("input_ids", "inputs_embeds"))
    return next((tokens.shape[:2] for tokens in given if tokens is not None), None)


def _squares_by_feature(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns (d,), the sum of squares over real tokens in float32, of (..., length, d) and a (..., length) mask."""
    x = x.float()
    if mask is not None:
        x = x * mask.unsqueeze(-1)
    return x.reshape(-1, x.shape[-1]).square().sum(0)


def _moments(x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns (d + 1, d + 1), the sum of y yᵀ over real tokens with y = (x, 1); x and mask as `_squares_by_feature`."""
    y = torch.cat([x.float(), torch.ones_like(x[..., :1], dtype=torch.float32)], -1)
    if mask is not None:
        y = y * mask.unsqueeze(-1)
    y = y.reshape(-1, y.shape[-1])
    return y.T @ y
