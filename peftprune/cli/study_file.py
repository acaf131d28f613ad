"""Study files: YAML whose keys are the arguments of `peftprune.compare`."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError, did_you_mean
from peftprune.strategy.budget import Budget
from peftprune.training.settings import NUMBERS, WHOLE


def read_study_file(path: str | Path) -> dict[str, Any]:
    """Reads the arguments of a study, for `peftprune.compare`.

        task: [mrpc, cola]
        methods: [lora, lorpa, "lorpa:r64(initial_rank=64)"]
        budget: [rank=2, rank=8]
        seeds: 3

    `task` may also be a mapping with the arguments of `Task.from_files`, and a budget one with those of `Budget`.
    Paths are relative to the working directory, as on the command line. Raises UsageError for a file that is missing or
    not a YAML mapping, an unknown argument, or text for a number.
    """
    import yaml

    from peftprune.comparison import compare
    from peftprune.tasks import Task

    file = Path(path)
    try:
        found = yaml.load(file.read_text("utf-8"), _loader())
    except UsageError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError.of("config", str(path), f"cannot be read ({error})", "Name a YAML file") from None
    except Exception as error:  # yaml raises any for text like 2024-13-45, which looks like a date
        problem = f"is not YAML ({' '.join(str(error).split())})"
        raise UsageError.of("config", str(path), problem, "Correct the file, or put quotes around text") from None
    if not isinstance(found, Mapping):
        raise UsageError.of("config", str(path), "holds no arguments", "Write lines such as task: rte")
    known = [name for name in inspect.signature(compare).parameters if name != "progress"]
    for name in found:
        if name not in known:
            cure = f"{did_you_mean(name, known)}Known: {', '.join(known)}"
            raise UsageError.of(f"{file.name}: argument", name, "does not exist", cure)
    values = {name: _number(file, name, value) if name in NUMBERS else value for name, value in found.items()}
    for name, make in (("task", Task.from_files), ("budget", Budget)):
        given = values.get(name)
        values[name] = [_built(name, make, v) for v in given] if isinstance(given, list) else _built(name, make, given)
    return {name: value for name, value in values.items() if value is not None}


def _loader() -> Any:
    """Returns a safe YAML loader that refuses duplicate keys."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise UsageError.of("config", twice, "occurs twice", "Keep one of the lines")
            return super().construct_mapping(node, deep=deep)

    return Loader


def overridden(written: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a file's arguments, overridden by options of the command line.

    A training length among the options replaces the file's.
    """
    from peftprune.study.arguments import parse_budgets

    result = {**written, **options}
    budgets = parse_budgets(result.get("budget", "rank=8"))
    lengths = [b for b in budgets.values() if isinstance(b, Budget) and b.has_length]
    if "epochs" in options and "budget" not in options and lengths:
        result["budget"] = [
            replace(b, epochs=None, steps=None, samples=None) if isinstance(b, Budget) else b for b in budgets.values()
        ]
    if "budget" in options and "epochs" not in options and lengths:
        result.pop("epochs", None)
    return result


def _number(file: Path, name: str, value: Any) -> Any:
    """Returns a number for text such as 1e-3, which YAML reads as text for lack of a point."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
        return int(number) if name in WHOLE and number.is_integer() else number
    except ValueError:
        raise UsageError.of(f"{file.name}: {name}", value, "is not a number", "Write 0.001, for example") from None


def _built(field: str, build: Any, arguments: Any) -> Any:
    """Returns what a mapping of arguments builds; any other value unchanged."""
    if not isinstance(arguments, Mapping):
        return arguments
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        known = ", ".join(inspect.signature(build).parameters)
        raise UsageError.of(field, dict(arguments), f"does not fit ({error})", f"Keys: {known}") from None
    return build(**arguments)
