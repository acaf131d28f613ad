"""The public names, for type checkers; `__init__.py` reads them here too."""

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

__version__: str
