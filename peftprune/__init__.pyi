"""The public names, for type checkers; `__init__.py` loads them lazily from here."""

from .adapters.inspection import inspect as inspect
from .adapters.load import load_adapter as load_adapter
from .adapters.pruning import prune as prune
from .analysis.peft_results import read_peft_method_comparison as read_peft_method_comparison
from .callback.callback import PruningCallback as PruningCallback
from .callback.data_order import sampler as sampler
from .callback.prepare import prepare as prepare
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .errors import PeftPruneError as PeftPruneError
from .errors import RunError as RunError
from .errors import UsageError as UsageError
from .methods.registry import register as register
from .strategy.baseline import Baseline as Baseline
from .strategy.budget import Budget as Budget
from .strategy.interface import RankPruningStrategy as RankPruningStrategy
from .strategy.phases import Phase as Phase
from .strategy.plan import PruningPlan as PruningPlan
from .strategy.signal import Signal as Signal
from .strategy.sites import Site as Site
from .strategy.sites import SiteShape as SiteShape
from .strategy.spec import AdapterSpec as AdapterSpec
from .strategy.view import StepView as StepView
from .tasks import Task as Task
from .tasks import load_task as load_task

__version__: str
