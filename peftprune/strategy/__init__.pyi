"""The interface of a method, for type checkers; `__init__.py` loads it lazily from here."""

from .baseline import Baseline as Baseline
from .budget import ArmBudget as ArmBudget
from .budget import Budget as Budget
from .budget import parse_budget as parse_budget
from .interface import RankPruningStrategy as RankPruningStrategy
from .method import Method as Method
from .method import Preparation as Preparation
from .options import NoOptions as NoOptions
from .options import Options as Options
from .options import check_option as check_option
from .options import option as option
from .phases import Phase as Phase
from .phases import PhaseRange as PhaseRange
from .phases import resolve_phases as resolve_phases
from .plan import PruningPlan as PruningPlan
from .signal import Signal as Signal
from .sites import LiveTensors as LiveTensors
from .sites import Site as Site
from .sites import SiteSet as SiteSet
from .sites import SiteShape as SiteShape
from .spec import AdapterSpec as AdapterSpec
from .spec import PaperSettings as PaperSettings
from .spec import ParameterGroup as ParameterGroup
from .spec import Published as Published
from .view import StepView as StepView
