"""Parses requests for methods: names, labels, options, files, classes and objects."""

import ast
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError, raise_all
from peftprune.methods.registry import REGISTERED, MethodSpec, load
from peftprune.strategy.method import Method


def parse(request: str | Sequence[Any], errors: list[str] | None = None) -> list[MethodSpec]:
    """Parses a request for methods: a comma-separated string, or a sequence of strings, strategy objects and classes.

    A string is `NAME`, `NAME(option=value, ...)`, `NAME:LABEL(option=value, ...)` or `FILE.py:CLASS(...)`; a labelled
    arm is called `NAME:LABEL` in tables. A method of PEFT's has the name `peft:NAME`. Raises UsageError for unknown
    methods or options, malformed requests, and labels that occur twice. What is wrong with single methods is raised at
    once for all of them, or added to `errors`, if given: the others are then returned, if there are any.
    """
    if isinstance(request, Mapping | range) or not isinstance(request, str | Sequence):
        raise UsageError.of("methods", request, "are neither text nor a list", "Write [lora, lorpa], for example")
    parts: list[Any] = _split(request) if isinstance(request, str) else list(request)
    parts = [p for part in parts for p in (_split(part) if isinstance(part, str) else [part])]
    if not parts:
        raise UsageError.of("methods", request, "is empty", "Name at least one, for example lora,lorpa")
    specs, found = [], list[str]() if errors is None else errors
    for part in parts:
        try:
            spec = _parse_text(part) if isinstance(part, str) else _parse_object(part)
            spec.build()
            specs.append(spec)
        except UsageError as error:
            found.append(str(error))
    if errors is None or not specs:
        raise_all(found)
    labels = [s.label for s in specs]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        name = specs[labels.index(twice)].cls.name
        raise UsageError.of("methods", twice, "occurs twice", f"Label one of them: {name}:mine(...)")
    return specs


def _split(text: str) -> list[str]:
    """Splits at commas outside of parentheses and brackets."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [p.strip() for p in [*parts, current] if p.strip()]


def _parse_text(text: str) -> MethodSpec:
    match = re.fullmatch(r"(?P<name>[^(]+?)(?P<options>\(.*\))?", text, re.DOTALL)
    if match is None:
        raise UsageError.of("method", text, "cannot be read", "Write NAME, NAME(option=value) or NAME:LABEL(...)")
    label = match["name"].strip()
    options = _parse_options(text, match["options"] or "()")
    head, _, tail = label.rpartition(":")
    if head.endswith(".py"):
        cls = _load_file(Path(head), tail)
        return MethodSpec(cls.name, cls, options, text=text)
    name = method_name(label)
    colon, tag = label[len(name) :][:1], label[len(name) + 1 :]
    if colon and not re.fullmatch(r"[\w.+-]+", tag):
        raise UsageError.of("method", text, "has a malformed label", "Use letters, digits and . + - _ after the colon")
    return MethodSpec(label, load(name), options, text="" if name in REGISTERED else text)


def method_name(label: str) -> str:
    """Returns the name in a label: `NAME` of `NAME:LABEL`, `peft:NAME` of `peft:NAME:LABEL`."""
    return ":".join(label.split(":")[: 2 if label.startswith("peft:") else 1])


def _parse_options(text: str, call: str) -> dict[str, Any]:
    try:
        node = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError
        names = [k.arg for k in node.keywords]
        if None in names or len(set(names)) < len(names):
            raise ValueError
        return {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # the failures that literal_eval states
        cure = "Write lorpa(initial_rank=64, rewind=True)"
        raise UsageError.of("method", text, "has options that are not name=value pairs", cure) from None


def _parse_object(given: Any) -> MethodSpec:
    if isinstance(given, MethodSpec):
        return given
    is_class = isinstance(given, type) and issubclass(given, Method)
    if is_class and not inspect.isabstract(given) and hasattr(given, "name"):
        return MethodSpec(given.name, given, text=_spell(given, {}))
    if isinstance(given, Method):
        return MethodSpec(given.name, type(given), instance=given, text=_spell(type(given), vars(given.config)))
    raise UsageError.of("methods", given, "is not a method", "Give a name, or a RankPruningStrategy class or object")


def _spell(cls: Any, options: Mapping[str, Any]) -> str:
    """Returns the text that requests a built-in method with these options; empty for other classes."""
    if not cls.__module__.startswith("peftprune.methods."):
        return ""
    defaults = vars(cls().config)
    named = ",".join(f"{k}={v!r}" for k, v in options.items() if v != defaults[k])
    return f"{cls.name}({named})" if named else str(cls.name)


def _load_file(path: Path, class_name: str) -> type[Method]:
    if not os.path.isfile(path):
        raise UsageError.of("method", str(path), "is not a file", "Write path/to/file.py:ClassName")
    module_spec = importlib.util.spec_from_file_location(f"peftprune_user_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look up their module there
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        problem = f"cannot be imported ({type(error).__name__}: {error})"
        raise UsageError.of("method", str(path), problem, "Correct the file; --debug shows where") from error
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        found = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise UsageError.of("method", class_name, f"is not a class in {path}", f"Classes there: {', '.join(found)}")
    return _parse_object(cls).cls
