"""Training settings that authors released, by base model and task, for `PaperSettings.runs`.

They are in `published_settings.json`. `batch_size` counts the examples of an optimizer step: those per device times
the devices and accumulation steps that a script names. `warmup_ratio` is the rounded share of the run that warms up in
the script. A list holds the values that a script searches. Runs that continue an adapter trained on MNLI are
left out: nothing here can continue one.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from peftprune.strategy.spec import Published


@cache
def published_runs(method: str) -> dict[tuple[str, str], Published]:
    """Returns (base model, task) to the run that the authors of a method released."""
    runs = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))[method]["runs"]
    return {(r["model"], r["task"]): Published(r["source"], _searched(r["values"]), r.get("note", "")) for r in runs}


def _searched(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
