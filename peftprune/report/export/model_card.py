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
    drawn = _draw(chosen, folder / PLOT_FILE)
    found = scores(chosen)
    text = "\n\n".join([f"---\n{_header(chosen, form, found)}\n---", *_body(chosen, how, facts, found, drawn)])
    ModelCard(text + "\n", ignore_metadata_errors=True).save(folder / CARD_FILE)


def _header(chosen: Chosen, form: str, found: Sequence[Mapping[str, Any]]) -> str:
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
    data = ModelCardData(
        base_model=base,
        library_name="transformers" if form == "merged" else "peft",
        model_name=f"{name} on {key['task']}",
        pipeline_tag=task,
        tags=["lora", "peftprune", chosen.result["method"]],
        eval_results=results,
    )
    return str(data.to_yaml())


def _body(chosen: Chosen, how: str, facts: Sequence[str], found: Sequence[Mapping[str, Any]], drawn: bool) -> list[str]:
    key, result = chosen.key, chosen.result
    ledger, request = result["ledger"], chosen.cell.request
    of_run = {
        "Base model": request["model"],
        "Method": result["method"] + (f" (label {result['label']})" if result["label"] != result["method"] else ""),
        "Budget": f"{key['budget']}: {result['budget']['params']:,} adapter parameters allowed",
        "Adapter parameters": f"{ledger['final_params']:,} (largest during training: {ledger['peak_params']:,})",
        "Head parameters": f"{ledger['head_params']:,}",
        "Task": f"{key['task']}, reported on {request['tasks'][0]['evaluation_split']}",
        "Seed": str(key["seed"]),
        "Training": f"{ledger['steps']:,} steps, {ledger['samples']:,} examples, {ledger['seconds']:.0f} s",
    }
    if result["exemption"]:
        of_run["Exempt from the budget"] = result["exemption"]
    marks = Frames(chosen.cell).learned.set_index(KEY)["learned"]
    if words := marks[tuple(key[name] for name in KEY)]:
        of_run["Learned"] = words
    parts = [f"# {result['label']} on {key['task']}", _table(("", ""), list(of_run.items()))]
    rows = [(row["metric"], row["split"], f"{row['value']:.4f}", _interval(row)) for row in found]
    parts += ["## Scores", _table(("metric", "split", "score", "95 % interval"), rows)]
    parts.append("The interval resamples examples: it describes this model, not other seeds.")
    parts += _over_seeds(chosen)
    parts += ["## Use", f"```python\n{how}\n```", *facts]
    if drawn:
        parts += ["## Ranks", f"![Rank of each adapted layer]({PLOT_FILE})"]
    parts += ["## Versions", _table(("package", "version"), list(request["versions"].items()))]
    parts += ["## Settings", f"```json\n{json.dumps(result['settings'], indent=1)}\n```"]
    return parts


def _over_seeds(chosen: Chosen) -> list[str]:
    if len(chosen.among) < 2:
        return []
    row = Frames(chosen.cell).table.iloc[0]
    mean, low, high = (row[f"{chosen.primary}_{part}"] for part in ("mean", "low", "high"))
    return [
        f"This seed has the best {chosen.primary} of {len(chosen.among)} on the split that it is reported on, so its "
        f"score is optimistic. Mean over the seeds: {mean:.4f}, with Student's 95 % interval {low:.4f} to {high:.4f}."
    ]


def _interval(row: Mapping[str, Any]) -> str:
    return "–" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _draw(chosen: Chosen, path: Path) -> bool:
    frame = Frames(chosen.cell).allocation
    frame = frame[frame["seed"] == chosen.key["seed"]]
    if frame.empty:
        return False
    save(plots.plot_rank_panels(frame), path)
    return True


def _hub_name(model: str) -> str | None:
    """Returns the base model's name on the hub; None for folders and the offline model."""
    named = model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()
    return HUB_NAMES.get(model, model if named else None)
