"""Experiment trackers: transformers' own callbacks, one run per arm, grouped by study."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from peftprune.errors import UsageError, did_you_mean
from peftprune.strategy.sites import Site, SiteSet

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
FOLDER = "tracking"
"""Folder of the study with TensorBoard's event files, one folder per arm."""


def parse_trackers(report_to: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names in `report_to`. Raises UsageError for an unknown tracker, and one that is not installed."""
    names = report_to if isinstance(report_to, list | tuple) else str(report_to or "").split(",")
    found = tuple(dict.fromkeys(filter(None, (str(name).strip() for name in names))))
    for name in found:
        if name not in TRACKERS:
            cure = did_you_mean(name, TRACKERS) or f"Known: {', '.join(TRACKERS)}"
            raise UsageError.of("report_to", name, "is not a tracker", cure)
        try:
            _callbacks([name])
        except RuntimeError as error:
            raise UsageError.of("report_to", name, "is not installed", f"pip install {name}") from error
    return found


def _callbacks(trackers: Sequence[str]) -> list[TrainerCallback]:
    return [callback() for callback in get_reporting_integration_callbacks(list(trackers))]


class Tracking:
    """The runs of one arm in its trackers. Results do not depend on them: they read what the trainer logs.

    While it is entered, the environment variables that transformers' callbacks read name the study; a group or
    experiment that the user has set stays.
    """

    def __init__(self, trackers: Sequence[str], arm: Path) -> None:
        study = arm.parents[1]
        groups = {"WANDB_RUN_GROUP": study.name, "MLFLOW_EXPERIMENT_NAME": study.name}
        self._environment = {name: value for name, value in groups.items() if trackers and name not in os.environ}
        if "tensorboard" in trackers:
            self._environment["TENSORBOARD_LOGGING_DIR"] = str(study / FOLDER / arm.name)
        self._before = {name: os.environ.get(name) for name in self._environment}
        self.names = {"run_name": arm.name, "project": study.name}
        """What the arm's `TrainingArguments` take."""
        self._trackers = tuple(trackers)
        self._callbacks: list[TrainerCallback] = []
        self._given: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        os.environ.update(self._environment)
        self._callbacks = _callbacks(self._trackers)

    def log(self, trainer: Trainer, logs: Mapping[str, float], sites: SiteSet | None = None) -> None:
        """Logs values, and the ranks of `sites` with the parameters that they cost."""
        begun, self._given = bool(self._given), (trainer.args, trainer.state, trainer.control)
        for callback in self._callbacks:
            if not begun:
                callback.on_train_begin(*self._given, model=trainer.model)
            callback.on_log(*self._given, logs={**logs, **_ranks(sites or {})}, model=trainer.model)

    def __exit__(self, *error: object) -> None:
        """Ends the runs."""
        for callback in self._callbacks:
            if self._given:
                callback.on_train_end(*self._given)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if "wandb" in self._trackers:
            import_module("wandb").finish()  # else the next arm of this process would log to the same run


def _ranks(sites: Mapping[str, Site]) -> dict[str, float]:
    layers: dict[int, list[int]] = {}
    for site in sites.values():
        layers.setdefault(site.layer, []).append(site.rank)
    found = {f"rank_layer_{layer}": sum(ranks) / len(ranks) for layer, ranks in sorted(layers.items())}
    if layers:
        found["rank_total"] = float(sum(map(sum, layers.values())))
        found["adapter_parameters"] = float(sum(site.rank * site.unit_cost for site in sites.values()))
    return found
