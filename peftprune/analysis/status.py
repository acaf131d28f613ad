"""How far a study is, from its folder alone."""

from __future__ import annotations

from typing import Any

from peftprune.study.store import ArmFolder
from peftprune.study.stored_study import StoredStudy


def arm_states(comparison: StoredStudy) -> list[dict[str, Any]]:
    """One row an arm, in the study's order: task, budget, method, seed, state, step, error.

    `state` is "done", "training" (a process holds the arm), "failed", "interrupted" (it was begun, and no process holds
    it) or "waiting"; `step` the newest checkpoint's, from which an arm that was cut off goes on; `error` why it failed
    when it was last tried.
    """
    return [{**key, **_state(folder)} for key, folder in comparison.arms()]


def _state(folder: ArmFolder) -> dict[str, Any]:
    error = folder.error()
    if folder.result() is not None:
        return {"state": "done", "step": None, "error": None}
    steps = [p.name.rpartition("-")[2] for p in folder.checkpoints.glob("checkpoint-*")]
    begun = (folder.path / "config.json").exists()
    state = "training" if folder.held else "failed" if error is not None else "interrupted" if begun else "waiting"
    return {
        "state": state,
        "step": max((int(s) for s in steps if s.isdecimal()), default=None),
        "error": None if error is None or state == "training" else error["error"],
    }
