"""Options of a method: defaults with their source, and how they are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from peftprune.errors import UsageError

if TYPE_CHECKING:
    pass


Mark = Literal["paper", "authors' code", "secondary summary", "convention of ours"]


def option(default: Any, mark: Mark, help: str) -> Any:
    """A config field that says where its default comes from: the paper, the authors' code, or a convention of ours."""
    return field(default=default, metadata={"mark": mark, "help": help})


@dataclass(frozen=True)
class NoOptions:
    """The config of a method that has nothing to set."""


def build_config(method: str, config: type, options: Mapping[str, Any]) -> Any:
    """Make a method's config, refusing unknown options with a suggestion.

    Raises:
        UsageError: for an option the method does not have; the config's own checks raise theirs.
    """
    known = {f.name: f for f in fields(config)}
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Options: {', '.join(known) or 'none'}"
            raise UsageError.of(f"{method} option", name, "does not exist", hint)
    missing = [
        n for n, f in known.items() if n not in options and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise UsageError.of(f"{method} options", sorted(options), f"lack {missing}", f"Give {missing[0]}=...")
    for name, value in options.items():
        _check_type(method, name, value, known[name].default)
    return config(**options)


def _check_type(method: str, name: str, value: object, default: object) -> None:
    """Refuse a value that is of another type than the default, so that range checks need not mind."""
    kind = "number" if isinstance(default, float) else type(default).__name__
    accepted = {"number": (int, float), "bool": (bool,), "int": (int,), "str": (str,)}.get(kind)
    if accepted is None or (isinstance(value, accepted) and (kind == "bool" or not isinstance(value, bool))):
        return
    raise UsageError.of(f"{method}.{name}", value, f"is no {kind}", f"Give {default!r}, for example")


def check_option(ok: bool, method: str, field_name: str, value: object, problem: str, cure: str) -> None:
    """Raise the common error for an option out of range unless `ok`."""
    if not ok:
        raise UsageError.of(f"{method}.{field_name}", value, problem, cure)
