"""Options of a method: what a field declares of its default, its range and its source, and the checks of values."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from math import isfinite
from typing import Any, Literal

from peftprune.errors import UsageError, did_you_mean

Source = Literal["paper", "authors' code", "secondary summary", "convention"]

SOURCES: dict[Source, str] = {
    "paper": "stated in the paper",
    "authors' code": "read in the code that the authors released",
    "secondary summary": "stated in a summary of the paper, whose own text was not accessible",
    "convention": "chosen by peftprune, because no accessible source states it",
}
"""What the source of a default means. Docstrings of methods name the sources of their statements in the same words."""

_TYPES: dict[str, tuple[Any, str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "text"),
}
_BOUNDS: dict[str, Callable[[Any, float], bool]] = {name: getattr(operator, name) for name in ("gt", "ge", "lt", "le")}


def option(
    default: Any,
    source: Source = "convention",
    help: str = "",
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Sequence[Any] | None = None,
    later: bool = False,
) -> Any:
    """Declares a config field whose values `check_range` checks. An annotation with `| None` accepts None.

    Args:
        default: the value that holds where none is given.
        source: where the default comes from, one of `SOURCES`.
        help: what the option sets; shown by `peftprune methods`.
        gt, ge, lt, le: numbers must be above, at least, below, at most it.
        choices: the only values that are accepted.
        later: whether the option joined when arms of the method were stored already: it then leaves the identity of
            arms that do not use it unchanged. Its default must do what the method did without it.
    """
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    metadata = {"source": source, "help": help, "choices": choices, "later": later} | bounds
    return field(default=default, metadata=metadata)


def identity(config: Any) -> dict[str, Any]:
    """Returns the options that tell arms of a method apart: all but the unused ones that joined later."""
    unused = {f.name for f in fields(config) if f.metadata.get("later") and getattr(config, f.name) == f.default}
    return {name: value for name, value in asdict(config).items() if name not in unused}


@dataclass(frozen=True)
class Options:
    """Base of a method's config: checks every field against its declaration when it is made."""

    def __post_init__(self) -> None:
        for declared in fields(self):
            check_range(type(self).__name__, declared.name, getattr(self, declared.name), declared)


@dataclass(frozen=True)
class NoOptions(Options):
    """The config of a method without options."""


def build_config(method: str, config: type, options: Mapping[str, Any]) -> Any:
    """Builds a method's config from its options. Raises UsageError for an unknown, missing or invalid one."""
    known = {f.name: f for f in fields(config)}
    for name, value in options.items():
        if name not in known:
            cure = f"{did_you_mean(name, known)}Options: {', '.join(known) or 'none'}"
            raise UsageError.of(f"{method} option", name, "does not exist", cure)
        check_range(method, name, value, known[name])
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [n for n in required if n not in options]
    if missing:
        raise UsageError.of(f"{method} options", sorted(options), f"lack {missing}", f"Give {missing[0]}=...")
    return config(**options)


def check_range(owner: str, name: str, value: Any, declared: Field[Any]) -> None:
    """Checks a value against the type and the range of its dataclass field, made with `option` or not.

    Raises UsageError, naming the field after its `owner` if there is one.
    """
    types = _annotated(declared)
    optional = "None" in types
    if value is None and optional:
        return
    problem = _problem(value, types[0], declared.metadata)
    if problem is not None:
        cure = _cure(declared) + (", or None" if optional else "")
        raise UsageError.of(f"{owner}.{name}" if owner else name, value, problem, cure)


def range_in_words(declared: Field[Any]) -> str:
    """Returns the values that a field accepts: "in [0, 1)", "at least 1", "'keep' or 'zero'", or its type."""
    types = _annotated(declared)
    choices = declared.metadata.get("choices")
    words = " or ".join(map(repr, choices)) if choices is not None else _bounds(declared.metadata)
    words = words or _TYPES.get(types[0], (object, types[0]))[1]
    return f"{words}, or None" if "None" in types else words


def check_option(ok: bool, method: str, field_name: str, value: object, problem: str, cure: str) -> None:
    """Raises the UsageError of an invalid option unless `ok`; for checks that `option` cannot declare."""
    if not ok:
        raise UsageError.of(f"{method}.{field_name}", value, problem, cure)


def _annotated(declared: Field[Any]) -> list[str]:
    """Returns the alternatives of a field's annotation: `int | None` gives int and None."""
    annotation: Any = declared.type
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return [part.strip() for part in text.split("|")]


def _problem(value: Any, kind: str, declared: Mapping[str, Any]) -> str | None:
    accepted, words = _TYPES.get(kind, (object, ""))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind in ("int", "float")):
        return f"is not {words}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "does not fit into 64 bits"
    if declared.get("choices") is not None:
        return None if value in declared["choices"] else "is unknown"
    bounds = _bounds(declared)
    if bounds and not isfinite(value):
        return "is not finite"
    kept = all(declared.get(name) is None or holds(value, declared[name]) for name, holds in _BOUNDS.items())
    return None if kept else f"is not {bounds}"


def _bounds(declared: Mapping[str, Any]) -> str:
    """Returns the range of a number: "in [0, 1)", "at least 1", "above 0"; empty where none is declared."""
    gt, ge, lt, le = (declared.get(name) for name in _BOUNDS)
    least, most = (gt if ge is None else ge), (lt if le is None else le)
    if least is not None and most is not None:
        return f"in {'(' if ge is None else '['}{least:g}, {most:g}{')' if le is None else ']'}"
    if least is not None:
        return f"{'above' if ge is None else 'at least'} {least:g}"
    return "" if most is None else f"{'below' if le is None else 'at most'} {most:g}"


def _cure(declared: Field[Any]) -> str:
    if declared.metadata.get("choices") is not None:
        return f"Use {' or '.join(map(repr, declared.metadata['choices']))}"
    if declared.default not in (None, MISSING):
        return f"Give {declared.default!r}, for example"
    return f"Give a value {_bounds(declared.metadata)}".rstrip()
