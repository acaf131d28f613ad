"""The registry: the names of all methods and the classes that they load."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any

from peftprune.errors import UsageError, did_you_mean
from peftprune.strategy.method import Method

_BUILT_IN = {
    "lora": "peftprune.methods.lora:LoRA",
    "lorpa": "peftprune.methods.lorpa:LoRPA",
    "prilora": "peftprune.methods.prilora:PRILoRA",
    "lora-drop": "peftprune.methods.lora_drop:LoRADrop",
    "lora-restart": "peftprune.methods.controls:LoRARestart",
    "random-rank": "peftprune.methods.controls:RandomRank",
    "delete": "peftprune.methods.controls:Delete",
    "reverse": "peftprune.methods.controls:Reverse",
    "top-layers": "peftprune.methods.controls:TopLayers",
    "shuffled": "peftprune.methods.controls:Shuffled",
    "transplant": "peftprune.methods.transplant:Transplant",
    "svd": "peftprune.methods.svd:SVD",
    "squeeze": "peftprune.methods.squeeze:Squeeze",
    "adalora": "peftprune.methods.adalora:AdaLoRA",
    "adalora-peft": "peftprune.methods.adalora_peft:AdaLoRAPeft",
    "dora-dynamic": "peftprune.methods.dora_dynamic:DoRADynamic",
    "increlora": "peftprune.methods.increlora:IncreLoRA",
    "elalora": "peftprune.methods.elalora:ElaLoRA",
    "flexlora": "peftprune.methods.flexlora:FlexLoRA",
    "sora": "peftprune.methods.sora:SoRA",
    "weightlora": "peftprune.methods.weightlora:WeightLoRA",
    "dylora": "peftprune.methods.dylora:DyLoRA",
    "l1ra": "peftprune.methods.l1ra:L1RA",
    "eva": "peftprune.methods.eva:EVA",
    "fisher": "peftprune.methods.fisher:Fisher",
    "gora": "peftprune.methods.gora:GoRA",
    "head-only": "peftprune.methods.without_lora:HeadOnly",
    "full": "peftprune.methods.without_lora:Full",
    "bitfit": "peftprune.methods.without_lora:BitFit",
    "rslora": "peftprune.methods.lora_variants:RSLoRA",
    "lora-fa": "peftprune.methods.lora_variants:LoRAFA",
    "dora": "peftprune.methods.dora:DoRA",
    "vera": "peftprune.methods.vera:VeRA",
}

REGISTERED: dict[str, type[Method]] = {}
"""Classes that `register` made known in this process, by name."""


@dataclass(frozen=True)
class MethodSpec:
    """A requested method: its label in tables, its class and its options.

    `text` requests it on the command line; it is empty for a class or object that only this process knows. `waits_for`
    is the label of another method that takes the place of the one it depends on.
    """

    label: str
    cls: type[Method]
    options: Mapping[str, Any] = field(default_factory=dict)
    instance: Any = None
    text: str = ""
    waits_for: str | None = None

    @property
    def needs(self) -> str | None:
        """The label of the method of the same study whose outcome this one needs."""
        method = self.build()
        return None if method.elsewhere else self.waits_for or method.depends_on

    def given(self, **options: Any) -> MethodSpec:
        """Returns the method with further options. Raises UsageError, when it is built, for unknown or wrong ones."""
        if not options:
            return self
        if self.instance is None:
            return replace(self, options={**self.options, **options})
        return replace(self, instance=None, options=vars(self.instance.config) | options)

    def build(self) -> Method:
        """Returns a new method object, so that arms share no state. Raises UsageError for invalid options."""
        if self.instance is not None:
            return type(self.instance)(self.instance.config)
        return self.cls(**self.options)


def names() -> list[str]:
    """Returns all method names: built in, from entry points, and registered in this process."""
    plugins = (e.name for e in entry_points(group="peftprune.methods"))
    return list(dict.fromkeys([*_BUILT_IN, *plugins, *REGISTERED]))


def register(cls: type[Method]) -> type[Method]:
    """Registers a method class under its `name` in this process, and returns it; usable as a decorator.

    Raises UsageError when another class has that name.
    """
    name = cls.name
    if name in _BUILT_IN or REGISTERED.get(name, cls) is not cls:
        raise UsageError.of("name", name, "is taken by another method", "Choose another name")
    REGISTERED[name] = cls
    return cls


def load(name: str) -> type[Method]:
    """Loads the class of a method. Raises UsageError for an unknown name, with the closest known one.

    `peft:NAME` is a method of the installed PEFT; `names` does not list these.
    """
    if name.partition(":")[0] == "peft":
        from peftprune.methods.peft_baseline import peft_method

        return peft_method(name.removeprefix("peft").removeprefix(":"))
    name = {"para": "svd"}.get(name, name)  # PARA prunes as this control does
    if name in REGISTERED:
        return REGISTERED[name]
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if plugin := next((e for e in entry_points(group="peftprune.methods") if e.name == name), None):
        return plugin.load()
    known = names()
    cure = f"{did_you_mean(name, known)}Known methods: {', '.join(known)}"
    raise UsageError.of("method", name, "is unknown", cure)
