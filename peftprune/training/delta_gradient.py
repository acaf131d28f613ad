"""Collects the gradient of each site's update ΔW, which no tensor of the adapter has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import Site, SiteSet
from peftprune.training.distributed import sum_over_processes


class DeltaGradients:
    """Sums (∂loss/∂output)ᵀ · input of each adapter over a step, where `signals` has `Signal.DELTA_GRADIENT`."""

    def __init__(self, sites: SiteSet, signals: frozenset[Signal]) -> None:
        self.wanted = False
        self._sums: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._handles = []
        if Signal.DELTA_GRADIENT in signals:
            for site in (s for s in sites.values() if not s.is_dropped):
                self._handles.append(site._lora_A.register_forward_pre_hook(self._reading(site)))
                self._handles.append(site._lora_B.register_forward_hook(self._writing(site)))

    def arm(self, signals: frozenset[Signal] | None = None) -> None:
        """Starts collecting for one optimizer step, unless `signals` are named without this one."""
        self.wanted = signals is None or Signal.DELTA_GRADIENT in signals
        self._sums.clear()

    def take(self) -> Mapping[Signal, Mapping[str, Tensor]]:
        """Stops collecting and returns this step's gradients, over all processes, by site."""
        self.wanted = False
        sum_over_processes(self._sums)
        return {Signal.DELTA_GRADIENT: dict(self._sums)} if self._handles else {}

    def remove(self) -> None:
        """Removes all hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def _reading(self, site: Site) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._inputs[site.name] = args[0].detach()

        return hook

    def _writing(self, site: Site) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = self._inputs.pop(site.name)
            if self.wanted and output.requires_grad:
                output.register_hook(lambda gradient: self._add(site, x, gradient))

        return hook

    def _add(self, site: Site, x: Tensor, gradient: Tensor) -> None:
        # The layer multiplies B A x by the scaling, and so its gradient.
        product = gradient.flatten(0, -2).float().T @ x.flatten(0, -2).float() / site.scaling
        known = self._sums.get(site.name)
        self._sums[site.name] = product if known is None else known + product
