"""The size of a study before it is trained: its arms and their steps."""

from collections.abc import Mapping
from typing import Any

from peftprune.study.arm import third
from peftprune.study.execution.work import Work
from peftprune.study.tuning import EXTENSIONS, Tuning


def tuning_size(tuning: Tuning | None, steps: Mapping[str, int], seeds: int) -> dict[str, int]:
    """Returns the arms and optimizer steps of one task and budget: of the trials, of the final arms, and of all.

    `steps` maps each method's label to the steps of one arm; every method has `seeds` final arms. `most_steps` is their
    number where the grid of learning rates grows as far as it can on both sides, and `stopped` that of the trials that
    stop at a third of their steps.
    """
    total, tries = sum(steps.values()), 0 if tuning is None else len(tuning.seeds)
    points = [0 if tuning is None else len(tuning.points(next(iter(steps)), n, n)) for n in (0, EXTENSIONS)]
    trials, most = (tries * count for count in points)
    stopped = tries * (points[0] // 2) if tuning is not None and tuning.halving else 0
    saved = stopped * sum(of_arm - third(of_arm) for of_arm in steps.values())
    return {
        "trials": trials * len(steps),
        "stopped": stopped * len(steps),
        "trial_steps": trials * total - saved,
        "final_arms": seeds * len(steps),
        "final_steps": seeds * total,
        "steps": (trials + seeds) * total - saved,
        "most_steps": (most + seeds) * total - saved,
    }


def header(work: Work, asked: Mapping[str, Any]) -> str:
    """Returns what is trained, in one line, from the work and the request as `study.json` stores it."""
    names = [part["name"] for part in asked["tasks"]] + [f"budget {part['label']}" for part in asked["budgets"]]
    arms = f"{len(work.ordered)} arms, {len(work.unfinished())} to train, {work.total_steps:,} steps"
    machine = "{processor}, {cores} cores".format_map(asked["hardware"])
    return f"{', '.join(names)}: {arms}. {asked['model']}, {work.dtype}, {work.threads} thread(s) an arm; {machine}."


def size_in_words(size: Mapping[str, int], seconds: float | None = None) -> str:
    """Returns `tuning_size` as a sentence, with hours where a pilot shows the seconds of a step."""
    stopped = f" ({size['stopped']:,} stop at a third)" if size["stopped"] else ""
    trials = f"{size['trials']:,} trials{stopped} of {size['trial_steps']:,} steps, " if size["trials"] else ""
    most = f", at most {size['most_steps']:,} where the grid of rates grows" if size["trials"] else ""
    text = f"{trials}{size['final_arms']:,} final arms of {size['final_steps']:,} steps: {size['steps']:,} in all{most}"
    if seconds is None:
        return f"{text}."
    return f"{text}; about {size['steps'] * seconds / 3600:.2g} hours one arm after another, from the pilot."
