"""The model card of an exported adapter."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from peftprune import plots
from peftprune.analysis.frames import Frames
from peftprune.analysis.predictions import measure, sample
from peftprune.analysis.runs import KEY
from peftprune.models.bundled import HUB_NAMES
from peftprune.report.export.choose import Chosen
from peftprune.report.export.hub_results import on_hub
from peftprune.report.figures import save
from peftprune.stats import score_interval
from peftprune.stats.metrics import METRICS
from peftprune.tasks.kinds import KINDS

CARD_FILE = "README.md"
PLOT_FILE = "allocation.png"
_SLOW_RESAMPLES = 1_000  # of a metric that is recomputed for each resample


def scores(chosen: Chosen) -> list[dict[str, Any]]:
    """Returns each metric of the arm with its 95 % interval over examples: `metric`, `split`, `value`, `low`, `high`.

    The interval is a percentile bootstrap of the stored predictions; None for a single example.
    """
    frame = chosen.folder.read_predictions()
    rows = []
    for metric in chosen.cell.metrics:
        what = measure(chosen.cell, chosen.key["task"], metric)
        values, references, name = sample(frame, what)
        low = high = None
        if len(values) > 1:
            resamples = _SLOW_RESAMPLES if METRICS[name].sums is None else 10_000
            low, high = score_interval(values, references, name, resamples=resamples)
        value = chosen.result["metrics"][metric]
        rows.append({"metric": metric, "value": value, "split": what.split, "low": low, "high": high})
    return rows


def write_card(chosen: Chosen, folder: Path, *, form: str, how: str, facts: Sequence[str]) -> None:
    """Writes `README.md`, with code that loads the folder (`how`) and sentences (`facts`), and draws existing ranks."""
    found, frames = scores(chosen), Frames(chosen.cell)
    card = ModelCard.from_template(
        _metadata(chosen, form, found),
        template_path=str(Path(__file__).with_name("model_card.md.j2")),
        chosen=chosen,
        learned=frames.learned.set_index(KEY)["learned"][tuple(chosen.key[name] for name in KEY)],
        scores=found,
        frames=frames,
        how=how,
        facts=facts,
        settings=json.dumps(chosen.result["settings"], indent=1),
        plot=PLOT_FILE if _draw(chosen, folder / PLOT_FILE) else None,
    )
    card.save(folder / CARD_FILE)


def _metadata(chosen: Chosen, form: str, found: Sequence[Mapping[str, Any]]) -> ModelCardData:
    name, key = chosen.result["label"], chosen.key
    base, task = _hub_name(chosen.cell.request["model"]), KINDS[chosen.cell.request["tasks"][0]["kind"]].pipeline
    about: dict[str, Any] = {"task_type": task, "dataset_type": key["task"], "dataset_name": key["task"]}
    splits: Mapping[str, str] = {}
    if info := on_hub(chosen):
        about |= {"dataset_type": info.hub_path, "dataset_config": info.hub_config}
        splits = info.hub_splits or splits
    results = [
        EvalResult(
            **about,
            dataset_split=splits.get(row["split"], row["split"]),
            metric_type=row["metric"],
            metric_value=row["value"],
        )
        for row in found
    ]
    return ModelCardData(
        base_model=base,
        library_name="transformers" if form == "merged" else "peft",
        model_name=f"{name} on {key['task']}",
        pipeline_tag=task,
        tags=["lora", "peftprune", chosen.result["method"]],
        eval_results=results,
    )


def _draw(chosen: Chosen, path: Path) -> bool:
    frame = Frames(chosen.cell).allocation
    frame = frame[frame["seed"] == chosen.key["seed"]]
    if frame.empty:
        return False
    save(plots.plot_rank_panels(frame), path)
    return True


def _hub_name(model: str) -> str | None:
    """Returns the base model's name on the hub; None for a folder and what else is not there."""
    named = model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()
    return HUB_NAMES.get(model, model if named else None)
