"""The search for each method's settings: the same points and seeds for every method, chosen on validation data.

Trials are ordinary arms of a study in the folder `tuning` of the study's own. A killed search goes on where it was, and
any number of processes can share it.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from peftprune.errors import RunError, UsageError
from peftprune.methods.registry import MethodSpec
from peftprune.study.arguments import parse_seeds
from peftprune.study.request import StudyRequest
from peftprune.study.stored_study import StoredStudy
from peftprune.tasks import Task
from peftprune.tasks.holdout import carve

_FIRST_SEED = 10_000
"""Tuning seeds that are given as a number count from here, beyond the seeds of the final arms."""
EXTENSIONS = 2
"""Times that the grid grows towards each side on which a method's best point lies."""
_RATE = "learning_rate"
Point = dict[str, Any]
"""Learning rate, and the method's own option."""
Cell = tuple[str, str]


@dataclass(frozen=True)
class Tuning:
    """What is tried, and how often: at least two `rates`, ascending, each with all `seeds`.

    `knobs` map a method's label to an option of its own and the values that are tried. With `refit` the final arms
    train on the validation data too. With `halving` only the better half of a method's trials goes on after a third.
    """

    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    knobs: Mapping[str, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    refit: bool = False
    halving: bool = False

    @property
    def depth(self) -> int:
        """Trials per learning rate: the number of values of a method's own option; 1 without such options."""
        return max((len(values) for _, values in self.knobs.values()), default=1)

    def points(self, label: str, low: int = 0, high: int = 0) -> list[Point]:
        """Returns a method's points, as many for every method, with `low` and `high` further rates beyond the ends.

        A method with an option of its own has each of its values at each rate; the others have as many more rates
        between the same ends.
        """
        if label in self.knobs:
            option, values = self.knobs[label]
            return [{_RATE: rate, option: v} for rate in _extended(self.rates, low, high) for v in values]
        rates = self.rates
        if self.depth > 1:
            # Rounded, so that the rates in tables are those that are used.
            rates = tuple(float(f"{r:.3g}") for r in np.geomspace(rates[0], rates[-1], self.depth * len(rates)))
        return [{_RATE: rate} for rate in _extended(rates, self.depth * low, self.depth * high)]

    def as_dict(self) -> dict[str, Any]:
        """Returns what `study.json` stores of the request."""
        knobs = {label: {"option": o, "values": list(v)} for label, (o, v) in self.knobs.items()}
        asked = {_RATE: list(self.rates), "knobs": knobs, "seeds": list(self.seeds), "refit": self.refit}
        return asked | ({"tuning": "halving"} if self.halving else {})


def _extended(rates: Sequence[float], low: int, high: int) -> list[float]:
    """Returns the rates with further ones beyond both ends, in the ratio of the two rates there."""
    down, up = rates[0] / rates[1], rates[-1] / rates[-2]
    before = [float(f"{rates[0] * down**i:.3g}") for i in range(low, 0, -1)]
    return [*before, *rates, *(float(f"{rates[-1] * up**i:.3g}") for i in range(1, high + 1))]


def parse_tuning(
    tune: str | Sequence[str] | None,
    trials: int | None,
    tuning_seeds: int | str | Sequence[int],
    refit: bool,
    methods: Sequence[MethodSpec],
    seeds: Sequence[int],
    how: str = "grid",
) -> Tuning | None:
    """Parses the arguments of `compare` that concern tuning; None without `tune`. `how` is its `tuning`.

    Raises UsageError for text that cannot be read, fewer than two rates, rates that are not positive, an option that
    its method does not have, seeds that are those of the final arms, or methods that wait for trials that may stop.
    """
    if how not in ("grid", "halving"):
        raise UsageError.of("tuning", how, "is unknown", "Write grid or halving")
    if not isinstance(refit, bool):
        raise UsageError.of("refit", refit, "is neither true nor false", "Write true, or leave it out")
    if tune is None:
        defaults = {"trials": None, "tuning_seeds": 1, "refit": False, "tuning": "grid"}
        for name, value in zip(defaults, (trials, tuning_seeds, refit, how), strict=True):
            if str(value) != str(defaults[name]):
                raise UsageError.of(name, value, "has no meaning without tune", f'Add tune="{_RATE}=3e-4,1e-3,3e-3"')
        return None
    parts = [tune] if isinstance(tune, str) else tune
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(p, str) for p in parts):
        raise UsageError.of("tune", tune, "is neither text nor a list of texts", f'Write "{_RATE}=3e-4,1e-3,3e-3"')
    rates: tuple[float, ...] = ()
    knobs: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for part in parts:
        name, equals, values = part.partition("=")
        name = name.strip()
        if not equals or not values.strip():
            raise UsageError.of("tune", part, "names no values", f'Write "{_RATE}=3e-4,1e-3,3e-3"')
        label, _, option = name.rpartition(".")
        if name == _RATE and not rates:
            rates = _rates(values, trials)
        elif label and label not in knobs:
            knobs[label] = option, _values(part, label, option, values, methods)
        else:
            known = f'Write "{_RATE}=..." once, and at most one "METHOD.option=..." per method'
            raise UsageError.of("tune", name, "cannot be tuned", known)
    if not rates:
        raise UsageError.of("tune", tune, "names no learning rates", f'Add "{_RATE}=3e-4,1e-3,3e-3"')
    if len({len(values) for _, values in knobs.values()}) > 1:
        raise UsageError.of("tune", tune, "gives the methods unequal numbers of trials", "Give equally many values")
    chosen = parse_seeds(tuning_seeds)
    if isinstance(tuning_seeds, int) or (isinstance(tuning_seeds, str) and "," not in tuning_seeds):
        chosen = [_FIRST_SEED + s for s in chosen]
    shared = sorted(set(chosen) & set(seeds))
    if shared:
        raise UsageError.of("tuning_seeds", shared, "are seeds of the final arms too", "Give others, or their number")
    if how == "halving" and (waiting := [spec.label for spec in methods if spec.needs is not None]):
        problem = f"stops trials whose outcome {', '.join(waiting)} may need"
        raise UsageError.of("tuning", how, problem, "Write grid, or leave those methods out")
    return Tuning(rates, tuple(chosen), knobs, refit, how == "halving")


def _rates(text: str, trials: int | None) -> tuple[float, ...]:
    """Returns rates from a list, or from `log(low, high)` and the number of trials by a low-discrepancy sequence."""
    span = re.fullmatch(r"\s*log\((.*),(.*)\)\s*", text)
    if (span is None) == (trials is not None):
        problem = "is not used" if span is None else "is missing"
        raise UsageError.of("trials", trials, problem, "It counts the points of tune=learning_rate=log(1e-4,1e-1)")
    try:
        found = [float(value) for value in (span.groups() if span else text.split(","))]
    except ValueError:
        raise UsageError.of("tune", text, "are not numbers", "Write 3e-4,1e-3,3e-3 or log(1e-4,1e-1)") from None
    if not all(0 < rate < math.inf for rate in found) or len(set(found)) < max(2, len(found)):
        raise UsageError.of("tune", text, "are not two or more distinct positive rates", "Write 3e-4,1e-3,3e-3")
    if span:
        from scipy.stats import qmc

        if not isinstance(trials, int) or isinstance(trials, bool) or not 2 <= trials <= 1_000:
            raise UsageError.of("trials", trials, "is not a whole number from 2 to 1000", "Give 8, for example")
        low, high = sorted(map(math.log, found))
        drawn = qmc.Halton(1, seed=0).random(trials)[:, 0]
        found = [float(f"{math.exp(low + (high - low) * u):.3g}") for u in drawn]
    return tuple(sorted(found))


def _values(part: str, label: str, option: str, text: str, methods: Sequence[MethodSpec]) -> tuple[Any, ...]:
    """Returns the values of a method's own option, checked by building the method with each."""
    from ast import literal_eval

    spec = next((s for s in methods if s.label == label), None)
    if spec is None:
        raise UsageError.of("tune", part, f"names no method of the study ({label!r})", f"Add {label} to methods")
    try:
        found = literal_eval(f"[{text}]")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise UsageError.of("tune", part, "has values that cannot be read", "Write lorpa.initial_rank=32,128") from None
    if len(found) < 2:
        raise UsageError.of("tune", part, "names one value", "Give two or more, or the option with the method")
    for value in found:
        spec.given(**{option: value}).build()
    return tuple(found)


class TrialsLeftError(RunError):
    """A trial has neither a result nor diverged, so that nothing can be chosen yet."""


class Trial(NamedTuple):
    """A method, by its label, at a point; `spec` is the method with the point's option, under the trial's label."""

    method: str
    point: Point
    spec: MethodSpec


def trials_of(tuning: Tuning, methods: Sequence[MethodSpec], low: int = 0, high: int = 0) -> dict[str, Trial]:
    """Returns the trials by label, in the order of methods and points.

    A method that depends on another depends on that one's trial of the same number.
    """
    points = {spec.label: tuning.points(spec.label, low, high) for spec in methods}
    found = {}
    for spec in methods:
        for i, point in enumerate(points[spec.label]):
            options = {name: value for name, value in point.items() if name != _RATE}
            needed = None if spec.needs is None else _name(spec.needs, points[spec.needs][i])
            label = _name(spec.label, point)
            tried = replace(spec.given(**options), label=label, text="", waits_for=needed)
            found[label] = Trial(spec.label, point, tried)
    return found


def _name(label: str, point: Point) -> str:
    return f"{label}@" + ",".join(f"{value}" if name == _RATE else f"{name}={value}" for name, value in point.items())


def trial_point(trial: str) -> tuple[str, float, str]:
    """Returns method, learning rate, and the method's own option with its value ("" without) of a trial's label."""
    method, _, point = trial.rpartition("@")
    rate, _, option = point.partition(",")
    return method, float(rate), option


@dataclass(frozen=True)
class Choice:
    """The point of a method in a task under a budget, with the label of the chosen trial and the number of trials.

    `score` is its mean validation score over the tuning seeds, None where every trial diverged; `at_default` that at
    the default learning rate, None where it is not among the points. `edge` is "low" or "high" where no rate beyond the
    chosen one was tried on that side, else "". `stopped` counts the trials that stopped at a third of their steps.
    """

    trial: str
    point: Point
    score: float | None
    at_default: float | None
    edge: str
    trials: int
    stopped: int = 0


def _means(study: StoredStudy, cell: Cell, trials: Collection[str], stopped: Collection[str]) -> dict[str, float]:
    """Returns each trial's mean validation score over the tuning seeds; of the `stopped` ones, that at a third."""
    seeds: dict[str, list[float]] = {}
    metric = study.primary[cell[0]]
    for key, folder in study.arms():
        if (key["task"], key["budget"]) != cell or key["method"] not in trials:
            continue
        result, error = folder.result(), folder.error()
        if key["method"] in stopped:
            result = folder.paused() or result
        if result is None and not (error or {}).get("diverged"):
            why = "has not run" if error is None else f"failed: {error['error']}"
            raise TrialsLeftError(f"tune: the trial {study.name(key)} {why}. Run the same command again")
        seeds.setdefault(key["method"], []).append(-math.inf if result is None else result["metrics"][metric])
    return {label: float(np.mean(scores)) for label, scores in seeds.items()}


def worse_half(study: StoredStudy, cell: Cell, trials: Mapping[str, Trial]) -> set[str]:
    """Returns the trials that stop at a third of their steps: the worse half of each method's, rounded down."""
    means, ranked = _means(study, cell, trials, trials), defaultdict[str, list[str]](list)
    for label in sorted(trials, key=lambda label: (-means[label], trials[label].point[_RATE])):
        ranked[trials[label].method].append(label)
    return {label for labels in ranked.values() for label in labels[-(-len(labels) // 2) :]}


def choose(
    study: StoredStudy, cell: Cell, trials: Mapping[str, Trial], default: float, stopped: Collection[str] = ()
) -> dict[str, Choice]:
    """Returns each method's choice in a task and a budget: the best mean validation score, ties to the lower rate.

    A diverged trial is a trial, and the worst one; those that `stopped` at a third are not chosen. Raises
    TrialsLeftError if a trial failed for another reason, or has not run.
    """
    means = _means(study, cell, trials, stopped)
    found = {
        method: _best({label: t.point for label, t in trials.items() if t.method == method}, means, default, stopped)
        for method in dict.fromkeys(trial.method for trial in trials.values())
    }
    equal = len({(choice.trials, choice.stopped) for choice in found.values()}) == 1
    assert equal, f"{', '.join(cell)}: unequal numbers of trials"
    return found


def _best(points: Mapping[str, Point], means: Mapping[str, float], default: float, stopped: Collection[str]) -> Choice:
    """Returns the choice among the points of one method, by the trials' labels."""
    rates = {label: point[_RATE] for label, point in points.items()}
    whole = [label for label in points if label not in stopped]
    best = min(whole, key=lambda label: (-means[label], rates[label]))
    edge = ""
    # Where all points are equally good, the grid is not what is too narrow.
    if len({means[label] for label in points}) > 1:
        edge = {min(rates.values()): "low", max(rates.values()): "high"}.get(rates[best], "")
    usual = [means[label] for label in whole if math.isclose(rates[label], default, rel_tol=1e-9)]
    score, at_default = (None if v is None or math.isinf(v) else v for v in (means[best], max(usual, default=None)))
    return Choice(best, points[best], score, at_default, edge, len(points), len(points) - len(whole))


def search(
    tuning: Tuning, request: StudyRequest, run: Callable[[StudyRequest], StoredStudy]
) -> dict[tuple[str, str, str], Choice]:
    """Trains the trials and returns the choice for each task, budget and method.

    Where any method's best point in a task and a budget lies at an edge, every method there gets the next rate, whose
    trials do not stop at a third. The request holds the final arms, with the tasks to tune on. `run` trains a request
    and returns the study that holds it.
    """
    tasks = {task.name: task for task in request.tasks}
    open_cells = dict.fromkeys(product(tasks, request.budgets), (0, 0))
    found: dict[tuple[str, str, str], Choice] = {}
    left: TrialsLeftError | None = None
    stopped: dict[Cell, set[str]] = {}
    # All cells together first, since their arms can run side by side.
    groups = [list(open_cells)]
    while groups:
        group = groups.pop(0)
        low, high = open_cells[group[0]]
        trials = trials_of(tuning, request.methods, low, high)
        asked = replace(
            request,
            methods=[trial.spec for trial in trials.values()],
            seeds=list(tuning.seeds),
            tasks=[tasks[name] for name in dict.fromkeys(task for task, _ in group)],
            budgets={name: request.budgets[name] for name in dict.fromkeys(budget for _, budget in group)},
            chosen={(*cell, name): {_RATE: t.point[_RATE]} for cell in group for name, t in trials.items()},
        )
        if tuning.halving and not stopped:
            study = run(replace(asked, paused={*asked.chosen}))
            stopped = {cell: worse_half(study, cell, trials) for cell in group}
        study = run(replace(asked, paused={(*cell, label) for cell in group for label in stopped.get(cell, ())}))
        for cell in group:
            try:
                choices = choose(study, cell, trials, request.settings.learning_rate, stopped.get(cell, ()))
            except TrialsLeftError as error:
                left = left or error
                continue
            found |= {(*cell, label): choice for label, choice in choices.items()}
            edges = {choice.edge for choice in choices.values()}
            wider = low + ("low" in edges and low < EXTENSIONS), high + ("high" in edges and high < EXTENSIONS)
            if wider != (low, high):
                open_cells[cell] = wider
                groups.append([cell])
    if left is not None:
        raise left
    return found


def carved(tuning: Tuning, request: StudyRequest) -> dict[str, tuple[Task, Task, dict[str, Any]]]:
    """Returns what `carve` makes of each task of a request that is to be tuned.

    Raises UsageError if a budget is the paper's, a learning rate is named, or a task leaves no validation data.
    """
    if "paper" in request.budgets:
        problem = "takes the learning rates that papers name"
        raise UsageError.of("budget", "paper", problem, "Leave tune out, or give a matched budget")
    if _RATE in request.named_settings:
        problem = "is named beside tune, which chooses it"
        raise UsageError.of(_RATE, request.named_settings[_RATE], problem, "Keep one of them")
    select = request.settings.select == "validation"
    if select and tuning.refit:
        problem = "would train on the data that select=validation chooses on"
        raise UsageError.of("refit", True, problem, "Leave one of them out")
    return {task.name: carve(task, refit=tuning.refit, select=select) for task in request.tasks}


def tuned(tuning: Tuning, request: StudyRequest, run: Callable[[StudyRequest], StoredStudy]) -> StudyRequest:
    """Trains the trials of a request and returns it with what they chose; `run` is that of `search`.

    The reported splits of its tasks are not read before the choice. Raises UsageError as `carved` does, and
    TrialsLeftError as `search` does.
    """
    parts = carved(tuning, request)
    choices = search(tuning, replace(request, tasks=[trial for trial, _, _ in parts.values()]), run)
    about = {
        "asked": tuning.as_dict(),
        "default": request.settings.learning_rate,
        "validation": {name: facts for name, (_, _, facts) in parts.items()},
        "chosen": [dict(zip(("task", "budget", "label"), k, strict=True)) | asdict(c) for k, c in choices.items()],
    }
    return replace(
        request,
        tasks=[final for _, final, _ in parts.values()],
        chosen={key: choice.point for key, choice in choices.items()},
        tuning=about,
    )
