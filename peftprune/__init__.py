"""peftprune: compare LoRA rank-pruning methods under identical, verified budgets.

    import peftprune
    result = peftprune.compare(["lora", "lorpa"], task="rte", data_dir="glue", budget="rank=8")
    result.table()

`__init__.pyi` lists the public names. They are imported on first use, so that `import peftprune` is fast.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    alias.name: statement.module
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom) and statement.module is not None
    for alias in statement.names
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'peftprune' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
