"""The interface of a method: the classes that a strategy subclasses, reads and returns. Imports no torch."""

from peftprune.strategy.baseline import Baseline
from peftprune.strategy.budget import ArmBudget, Budget, parse_budget
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.method import Method, Preparation
from peftprune.strategy.options import NoOptions, Options, check_option, option
from peftprune.strategy.phases import Phase, PhaseRange, resolve_phases
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.signal import Signal
from peftprune.strategy.sites import LiveTensors, Site, SiteSet, SiteShape
from peftprune.strategy.spec import AdapterSpec, PaperSettings, ParameterGroup, Published
from peftprune.strategy.view import StepView

__all__ = [
    "AdapterSpec",
    "ArmBudget",
    "Baseline",
    "Budget",
    "LiveTensors",
    "Method",
    "NoOptions",
    "Options",
    "PaperSettings",
    "ParameterGroup",
    "Phase",
    "PhaseRange",
    "Preparation",
    "PruningPlan",
    "Published",
    "RankPruningStrategy",
    "Signal",
    "Site",
    "SiteSet",
    "SiteShape",
    "StepView",
    "check_option",
    "option",
    "parse_budget",
    "resolve_phases",
]
