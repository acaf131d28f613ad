"""What the sources of a method publish for a model and a task, and what a run under `budget="paper"` lacks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peftprune.errors import UsageError
from peftprune.strategy.method import Method

_ASKED = ("learning_rate", "batch_size", "epochs")
"""Settings that decide a run most and that no default may replace."""


@dataclass(frozen=True)
class PublishedValue:
    """One setting of an arm under `budget="paper"`.

    `value` is the published one, a list of those that the source searches, or None where none is published. `source`
    is repository, commit and file, the method's source, "given" where the user names it, or what is wrong.
    """

    setting: str
    value: Any
    source: str


def published_values(
    label: str, method: Method, model: str, task: str, given: Mapping[str, Any]
) -> tuple[PublishedValue, ...]:
    """Returns the published settings; those that the user names, and those that are asked for, come with them."""
    paper = method.paper()
    run = paper.runs.get((model, task))
    values = paper.published(model, task)
    named = {name: value for name, value in given.items() if value is not None}
    found = []
    for name in dict.fromkeys([*_ASKED, *values]):
        value = values.get(name)
        source = run.source if run is not None and name in run.values else method.source
        if name in named:
            value, source = named[name], "given"
        elif value is None:
            source = f"not published for {label} on {model}, {task}"
        found.append(PublishedValue(name, list(value) if isinstance(value, tuple) else value, source))
    if run is not None and run.note:
        found.append(PublishedValue("note", run.note, run.source))
    return tuple(found)


def check_published(values: Iterable[PublishedValue]) -> None:
    """Raises UsageError for a setting that no source states or that the source searches; it names the option."""
    for value in values:
        option = f"{value.setting}=… (--{value.setting.replace('_', '-')})"
        if value.value is None:
            raise UsageError.of(value.setting, None, f"is {value.source}", f"Give {option}, or a matched budget")
        if isinstance(value.value, list):
            problem = f"are searched by {value.source}"
            raise UsageError.of(value.setting, value.value, problem, f"Give one of them: {option}")
