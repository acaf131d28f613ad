"""The score of an exported adapter as the hub reads it, for the model's page and the leaderboards of benchmarks."""

from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from peftprune.analysis.predictions import measure
from peftprune.report.export.choose import Chosen
from peftprune.report.findings import selected_in_words
from peftprune.tasks import TASKS
from peftprune.tasks.base import TaskInfo

RESULTS_FOLDER = ".eval_results"


def on_hub(chosen: Chosen) -> TaskInfo | None:
    """Returns the arm's task, if the hub has its data and the arm was evaluated on all of them."""
    (task,) = chosen.cell.request["tasks"]
    info = TASKS.get(task["name"]) if task["named"] else None
    whole = info is not None and info.hub_path and task["evaluation_examples"] == info.evaluation_sizes
    return info if whole else None


def write_eval_results(chosen: Chosen, folder: Path) -> None:
    """Writes the primary metric to `.eval_results/TASK.yaml`; nothing for other data than the whole of the hub's."""
    info, what = on_hub(chosen), measure(chosen.cell, chosen.key["task"], chosen.primary)
    if info is None or info.hub_path is None:
        return
    split = f"{info.evaluation_split}{selected_in_words(chosen.cell)} ({info.evaluation_sizes[what.split]:,} examples)"
    notes = f"{what.name}, from {what.limits[0]:g} to {what.limits[1]:g}, on {split}. {chosen.words}"
    entry = EvalResultEntry(info.hub_path, info.name, chosen.result["metrics"][chosen.primary], notes=notes)
    (folder / RESULTS_FOLDER).mkdir()
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    (folder / RESULTS_FOLDER / f"{info.name}.yaml").write_text(text, encoding="utf-8")
