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
    from peftprune.analysis.peft_results import read_peft_method_comparison as read_peft_method_comparison
    from peftprune.callback.callback import PruningCallback as PruningCallback
    from peftprune.callback.data_order import sampler as sampler
    from peftprune.callback.prepare import prepare as prepare
    from peftprune.comparison import Comparison as Comparison
    from peftprune.comparison import compare as compare
    from peftprune.errors import PeftPruneError as PeftPruneError
    from peftprune.errors import RunError as RunError
    from peftprune.errors import UsageError as UsageError
    from peftprune.methods.registry import register as register
    from peftprune.strategy.baseline import Baseline as Baseline
    from peftprune.strategy.budget import Budget as Budget
    from peftprune.strategy.interface import RankPruningStrategy as RankPruningStrategy
    from peftprune.strategy.phases import Phase as Phase
    from peftprune.strategy.plan import PruningPlan as PruningPlan
    from peftprune.strategy.signal import Signal as Signal
    from peftprune.strategy.sites import Site as Site
    from peftprune.strategy.sites import SiteShape as SiteShape
    from peftprune.strategy.spec import AdapterSpec as AdapterSpec
    from peftprune.strategy.view import StepView as StepView
    from peftprune.tasks import Task as Task
    from peftprune.tasks import load_task as load_task

__version__ = "0.1.0"

_HOMES = {
    "AdapterSpec": "strategy.spec",
    "Baseline": "strategy.baseline",
    "Budget": "strategy.budget",
    "Comparison": "comparison",
    "PeftPruneError": "errors",
    "Phase": "strategy.phases",
    "PruningCallback": "callback.callback",
    "PruningPlan": "strategy.plan",
    "RankPruningStrategy": "strategy.interface",
    "RunError": "errors",
    "Signal": "strategy.signal",
    "Site": "strategy.sites",
    "SiteShape": "strategy.sites",
    "StepView": "strategy.view",
    "Task": "tasks",
    "UsageError": "errors",
    "compare": "comparison",
    "inspect": "adapters.inspection",
    "load_adapter": "adapters.load",
    "load_task": "tasks",
    "prepare": "callback.prepare",
    "prune": "adapters.pruning",
    "read_peft_method_comparison": "analysis.peft_results",
    "register": "methods.registry",
    "sampler": "callback.data_order",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'peftprune' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"peftprune.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
