from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from peftprune.study.store import STOPPED, ArmFolder
from peftprune.study.stored_study import StoredStudy
from peftprune.training.checkpoints import checkpoints_in, step_of


def arm_states(study: StoredStudy) -> list[dict[str, Any]]:
    """Returns one row per arm, in the study's order: task, budget, method, seed, state, step, error.

    `state` is "done", "training" (a process holds the arm), "failed", "interrupted" (it was started, and no process
    holds it), "waiting" or, of a trial, "stopped at a third"; `step` is that of the newest checkpoint, from which an
    interrupted arm resumes; `error` is the message of the last failure.
    """
    return [{**key, **_state(folder)} for key, folder in study.arms()]


def minutes_left(study: StoredStudy, states: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the minutes until all arms are done, from the mean time of those that are and the number at work.

    None where no arm is done or none is at work. An arm at work counts half.
    """
    seconds = [result["ledger"]["seconds"] for *_, result in study.finished()]
    working = sum(row["state"] == "training" for row in states)
    if not seconds or not working:
        return None
    waiting = sum(row["state"] in ("waiting", "interrupted") for row in states)
    return (waiting + working / 2) / working * mean(seconds) / 60


def _state(folder: ArmFolder) -> dict[str, Any]:
    error = folder.error()
    if folder.result() is not None:
        return {"state": "done", "step": None, "error": None}
    begun = STOPPED if folder.paused() else "interrupted" if (folder.path / "config.json").exists() else "waiting"
    state = "training" if folder.held else "failed" if error is not None else begun
    return {
        "state": state,
        "step": next(map(step_of, checkpoints_in(folder.checkpoints)), None),
        "error": None if error is None or state == "training" else error["error"],
    }
