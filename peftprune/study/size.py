"""The size of a study before it is trained: its arms, their steps, and the seconds of a step on this machine."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from peftprune.study.tuning import EXTENSIONS, Tuning

if TYPE_CHECKING:
    from peftprune.study.planning import ArmPlan
    from peftprune.training.objectives import ArmInputs

_TIMED = 3
"""Steps after the first one, which also prepares kernels."""


def tuning_size(tuning: Tuning | None, steps: Mapping[str, int], seeds: int) -> dict[str, int]:
    """Returns the arms and optimizer steps of one task and budget: of the trials, of the final arms, and of all.

    `steps` maps each method's label to the steps of one arm; every method has `seeds` final arms. `most_steps` is their
    number where the grid of learning rates grows as far as it can on both sides.
    """
    total = sum(steps.values())
    trials, most = (
        0 if tuning is None else len(tuning.seeds) * len(tuning.points(next(iter(steps)), wider, wider))
        for wider in (0, EXTENSIONS)
    )
    return {
        "trials": trials * len(steps),
        "trial_steps": trials * total,
        "final_arms": seeds * len(steps),
        "final_steps": seeds * total,
        "steps": (trials + seeds) * total,
        "most_steps": (most + seeds) * total,
    }


def size_in_words(size: Mapping[str, int], seconds: float | None = None, source: str = "a timed step") -> str:
    """Returns `tuning_size` as a sentence, with hours where the seconds of a step are known."""
    trials = f"{size['trials']:,} trials of {size['trial_steps']:,} steps, " if size["trials"] else ""
    most = f", at most {size['most_steps']:,} where the grid of rates grows" if size["trials"] else ""
    text = f"{trials}{size['final_arms']:,} final arms of {size['final_steps']:,} steps: {size['steps']:,} steps{most}"
    if seconds is None:
        return f"{text}."
    return f"{text}; about {size['steps'] * seconds / 3600:.2g} hours one arm after another, from {source}."


class _Timed(BaseException):
    """Enough steps are timed. No handler of errors takes it for a failure."""


def step_seconds(plan: ArmPlan, inputs: ArmInputs) -> float:
    """Returns the seconds of an optimizer step of an arm on this machine, from its first steps; nothing is kept."""
    from peftprune.study.arm import run_arm
    from peftprune.study.store import ArmFolder

    ends = [time.perf_counter()]

    def note(done: int, total: int, phase: str) -> None:
        ends.append(time.perf_counter())
        if done > _TIMED or done == total:
            raise _Timed

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Timed):
        run_arm(plan, inputs, 0, ArmFolder(Path(folder)), {}, note)
    return min(b - a for a, b in pairwise(ends[1:] if len(ends) > 2 else ends))
