"""Temporarily overrides parameter-group settings for one optimizer step.

The optimizer and its schedule are the user's: between steps, and so in checkpoints, the parameter groups are as the
user's trainer made them.
"""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from peftprune.strategy import ParameterGroup, SiteSet


class StepParamGroups:
    """Parameter groups for one optimizer step at a time.

    `settings` are the method's, for "A", "B", "gate" and "head"; a method's own `lr` follows the schedule of the run,
    whose peak is `learning_rate`.
    """

    def __init__(self, settings: Mapping[str, ParameterGroup], learning_rate: float, weight_decay: float) -> None:
        self.learning_rate = learning_rate
        self.settings = {
            kind: group
            for kind, group in settings.items()
            if (group.lr_scale, group.lr, group.constant) != (1.0, None, False)
            or group.weight_decay not in (None, weight_decay)
        }
        self._own: list[dict[str, Any]] | None = None

    def override(self, optimizer: Optimizer, sites: SiteSet, factor: float) -> None:
        """Multiplies every learning rate by `factor` and moves tensors with their own settings to their own groups."""
        self._own = optimizer.param_groups
        kinds = self._kinds(sites)
        groups = []
        for group in self._own:
            parts: dict[str, list[Any]] = {}
            for param in group["params"]:
                kind = kinds.get(id(param), "head")
                parts.setdefault(kind if kind in self.settings else "", []).append(param)
            groups += [self._group(group, kind, params, factor) for kind, params in parts.items()]
        optimizer.param_groups = groups

    def restore(self, optimizer: Optimizer) -> None:
        if self._own is not None:
            optimizer.param_groups, self._own = self._own, None

    def _kinds(self, sites: SiteSet) -> dict[int, str]:
        groups = sites.groups() if self.settings else []
        return {id(tensor): kind for group in groups for kind, tensor in vars(group[0].live()).items()}

    def _group(self, group: dict[str, Any], kind: str, params: list[Any], factor: float) -> dict[str, Any]:
        lr = group["lr"] * factor
        changed = {**group, "params": params}
        if (wanted := self.settings.get(kind)) is not None:
            current = self.learning_rate if wanted.constant else lr
            lr = current * (wanted.lr_scale if wanted.lr is None else wanted.lr / self.learning_rate)
            # Biases have no weight decay.
            if wanted.weight_decay is not None and (kind != "head" or group.get("weight_decay")):
                changed["weight_decay"] = wanted.weight_decay
        return {**changed, "lr": lr}
