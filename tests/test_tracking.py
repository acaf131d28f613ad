"""Experiment trackers: one run per arm, ranks over the steps, and the same results with and without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import peftprune
from peftprune.errors import UsageError
from peftprune.training import tracking
from tests.helpers import DEFAULTS, classification_task

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def compare(folder: Path, model: Path, **settings: Any) -> peftprune.Comparison:
    given = {"task": classification_task(), "budget": "rank=2,steps=10", "target_modules": "attention"}
    return peftprune.compare(
        ["lora", "lorpa(initial_rank=8)"], model=model, output_dir=folder, **(DEFAULTS | given | settings)
    )


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns what TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_shows_ranks_falling_and_results_stay_the_same(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_RUN_GROUP", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    tracked = compare(tmp_path / "study", tiny_bert, report_to="tensorboard")
    plain = compare(tmp_path / "plain", tiny_bert)
    runs = {folder.name.split("-")[0]: scalars(folder) for folder in (tracked.path / tracking.FOLDER).iterdir()}
    assert set(runs) == {"lora", "lorpa"}
    sites = tracked.request["sites"]
    for method, first in (("lora", 2), ("lorpa", 8)):
        total = runs[method]["train/rank_total"]
        assert total[0] == (1, first * sites)
        assert total[-1] == (10, 2 * sites)
        assert runs[method]["train/rank_layer_0"][-1] == (10, 2)
        (_, accuracy), *rest = runs[method]["eval/accuracy"]
        assert rest == []
        stored = tracked.runs().set_index("method")["accuracy"][method]
        assert accuracy == pytest.approx(stored, abs=1e-6)
    digests = [[result["digests"] for *_, result in study.finished()] for study in (tracked, plain)]
    assert digests[0] == digests[1]
    assert not (plain.path / tracking.FOLDER).exists()
    assert not {"TENSORBOARD_LOGGING_DIR", "WANDB_RUN_GROUP"} & set(os.environ), "the next study would take its group"


def test_unknown_trackers_are_refused(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"report_to: 'tensorbord' is not a tracker.*Did you mean 'tensorboard'"):
        compare(tmp_path, tiny_bert, report_to="tensorbord")
    monkeypatch.setattr("transformers.integrations.integration_utils.is_trackio_available", lambda: False)
    with pytest.raises(UsageError, match=r"report_to: 'trackio' is not installed. pip install trackio"):
        compare(tmp_path, tiny_bert, report_to="trackio")


def test_trackio_stores_a_run_for_each_arm(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    result = compare(tmp_path / "study", tiny_bert, report_to="trackio")
    runs = {run.name: run for run in trackio.Api().runs("study")}
    assert set(runs) == {folder.path.name for _, folder in result.arms()}
