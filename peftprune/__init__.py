"""peftprune: compare LoRA rank-pruning methods under identical, verified budgets.

    import peftprune
    result = peftprune.compare(["lora", "lorpa"], task="rte", data_dir="glue", budget="rank=8")
    result.table()

Names are imported when they are first used, so that `import peftprune` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftprune.adapters.inspection import inspect as inspect
    from peftprune.adapters.load import load_adapter as load_adapter
    from peftprune.adapters.pruning import prune as prune
    from peftprune.any_trainer.callback import PruningCallback as PruningCallback
    from peftprune.any_trainer.order import sampler as sampler
    from peftprune.any_trainer.start import prepare as prepare
    from peftprune.budget import Budget as Budget
    from peftprune.comparison import Comparison as Comparison
    from peftprune.errors import PeftPruneError as PeftPruneError
    from peftprune.errors import RunError as RunError
    from peftprune.errors import UsageError as UsageError
    from peftprune.methods import register as register
    from peftprune.peft_results import read_peft_method_comparison as read_peft_method_comparison
    from peftprune.sites import Site as Site
    from peftprune.sites import SiteShape as SiteShape
    from peftprune.strategy import AdapterSpec as AdapterSpec
    from peftprune.strategy import Baseline as Baseline
    from peftprune.strategy import Phase as Phase
    from peftprune.strategy import PruningPlan as PruningPlan
    from peftprune.strategy import RankPruningStrategy as RankPruningStrategy
    from peftprune.strategy import Signal as Signal
    from peftprune.strategy import StepView as StepView
    from peftprune.study import compare as compare
    from peftprune.tasks import Task as Task
    from peftprune.tasks import load_task as load_task

__version__ = "0.1.0"

_HOMES = {
    "AdapterSpec": "strategy",
    "Baseline": "strategy",
    "Budget": "budget",
    "Comparison": "comparison",
    "PeftPruneError": "errors",
    "Phase": "strategy",
    "PruningCallback": "any_trainer.callback",
    "PruningPlan": "strategy",
    "RankPruningStrategy": "strategy",
    "RunError": "errors",
    "Signal": "strategy",
    "Site": "sites",
    "SiteShape": "sites",
    "StepView": "strategy",
    "Task": "tasks",
    "UsageError": "errors",
    "compare": "study",
    "inspect": "adapters.inspection",
    "load_adapter": "adapters.load",
    "load_task": "tasks",
    "prepare": "any_trainer.start",
    "prune": "adapters.pruning",
    "read_peft_method_comparison": "peft_results",
    "register": "methods",
    "sampler": "any_trainer.order",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'peftprune' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"peftprune.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
