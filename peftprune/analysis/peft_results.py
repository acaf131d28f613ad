"""Results of PEFT's `method_comparison`, read into the same frames as a stored study.

PEFT writes one JSON file per experiment, with three parts: `run_info` (the request), `train_info` (the outcome) and
`meta_info` (versions and hardware). Only results that share model, task and budget are comparable.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

import pandas as pd

from peftprune import plots
from peftprune.analysis.runs import KEY, SITES
from peftprune.errors import UsageError
from peftprune.strategy.lazy import Figure
from peftprune.study.arm_files import fits

_COUNTS = ["final_params", "total_params", "file_bytes", "seconds", "memory_bytes"]
_DETAILS = ["peft_type", "model", "steps", "created_at", "status"]
_SHAPE: Any = {
    "run_info": {"experiment_name": str, "train_config": dict, "peft_config": (dict, NoneType)},
    "train_info": {"status": str, "metrics": [dict]},
}

# A module's number in the list of blocks that holds it: the first one in its name.
_BLOCK = re.compile(r"^(?:(?P<stack>.*?)\.)?(?P<layer>\d+)\.(?P<kind>.+)$")


class PeftResults:
    """The result files of the folder `path`; `skipped` maps those that are broken or no such result to the reason.

    `task` is the folder's name, or its parent's where the name ends in "results".
    """

    def __init__(self, path: Path, results: Mapping[Path, Mapping[str, Any]], skipped: Mapping[Path, str]) -> None:
        self.path = path
        folder = path.resolve()
        self.task = folder.parent.name if folder.name.endswith("results") else folder.name
        self.skipped = dict(skipped)
        self._results = dict(results)
        seeds = {file: result["run_info"]["train_config"].get("seed") for file, result in results.items()}
        cell = {"task": self.task, "budget": ""}
        self._keys = {f: {**cell, "method": label, "seed": seeds[f]} for f, label in _labels(results).items()}

    @property
    def metrics(self) -> list[str]:
        """Columns of `runs()` that hold test metrics, such as `test_accuracy`, in order of appearance."""
        return list(dict.fromkeys(name for result in self._results.values() for name in _metrics(result)))

    def runs(self) -> pd.DataFrame:
        """Returns one row per file.

        `task`, `budget` (empty: the experiments have none), `method` (the experiment's name, with the time of the run
        where several files share it), `seed`, each test metric, `final_params` (trainable, as PEFT counts them; for
        AdaLoRA before its ranks are cut), `total_params` (with the frozen ones), `file_bytes`, `seconds` of training,
        `memory_bytes` (maximum reserved on the accelerator), `peft_type` (lower case, "full-finetuning" without PEFT),
        `model`, `steps`, `created_at`, and `status` ("done", or "failed: why"). Values that a file does not state are
        missing.
        """
        rows = []
        for file, result in self._results.items():
            run, train = result["run_info"], result["train_info"]
            config, peft = run["train_config"], run.get("peft_config")
            status, message = train["status"], run.get("error_msg") or ""
            rows.append(
                {
                    **self._keys[file],
                    **_metrics(result),
                    "final_params": train.get("num_trainable_params"),
                    "total_params": train.get("num_total_params"),
                    "file_bytes": train.get("file_size"),
                    "seconds": train.get("train_time"),
                    # Files from before mid-2025 name the accelerator "cuda".
                    "memory_bytes": train.get("accelerator_memory_max", train.get("cuda_memory_max")),
                    "peft_type": str(peft.get("peft_type", "unknown")).lower() if peft else "full-finetuning",
                    "model": config.get("model_id"),
                    "steps": config.get("max_steps"),
                    "created_at": run.get("created_at"),
                    "status": "done" if status == "success" else f"failed: {message or status}",
                }
            )
        return pd.DataFrame(rows, columns=[*KEY, *self.metrics, *_COUNTS, *_DETAILS])

    def allocation(self) -> pd.DataFrame:
        """Returns one row per site whose rank a file states, with the columns of `Comparison.allocation()`.

        AdaLoRA's files list for each site which of its initial ranks are kept; `rank` is their number. LoRA's files
        state a site's rank only where it deviates from the default, so only those sites have rows. `layer` is the
        first number in the site's name and `kind` the part after it, preceded by the name of the list of blocks where a
        model has several lists. `density` is 1 and `shared_with` is empty: these methods neither mask nor share.
        """
        rows = []
        for file, result in self._results.items():
            sites = _ranks(result["run_info"].get("peft_config"))
            places = {site: match for site in sites if (match := _BLOCK.match(site))}
            several = len({match["stack"] for match in places.values()}) > 1
            for site, match in places.items():
                stack = (match["stack"] or "").rpartition(".")[2]
                kind = f"{stack}.{match['kind']}" if several and stack else match["kind"]
                place = {**self._keys[file], "site": site, "layer": int(match["layer"]), "kind": kind}
                rows.append({**place, "rank": sites[site], "density": 1.0, "shared_with": ""})
        return pd.DataFrame(rows, columns=SITES)

    def plot_ranks(self, path: str | Path | None = None) -> Figure:
        """Draws heat maps of the ranks as `Comparison.plot("ranks")` does, and saves them to `path` if given.

        Raises UsageError if no file states ranks.
        """
        return plots.plot_rank_panels(self.allocation(), path)


def read_peft_method_comparison(folder: str | Path) -> PeftResults:
    """Reads the JSON files of PEFT's `method_comparison`, for example its folder `MetaMathQA/results`.

    Files directly in the folder are read, in the order of their names. Files that are broken or of another kind are
    left out and listed in the result's `skipped`. Raises UsageError for a folder that is missing or holds no result.
    """
    path = Path(folder)
    files = sorted(path.glob("*.json"))
    cure = "Give a folder of PEFT's result files, such as method_comparison/MetaMathQA/results"
    if not files:
        problem = "holds no JSON file" if path.is_dir() else "is not a folder"
        raise UsageError.of("folder", str(path), problem, cure)
    results: dict[Path, Mapping[str, Any]] = {}
    skipped: dict[Path, str] = {}
    for file in files:
        try:
            content = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            skipped[file] = f"cannot be read: {error}"
            continue
        if why := _foreign(content):
            skipped[file] = why
        else:
            results[file] = content
    if not results:
        first, why = next(iter(skipped.items()))
        problem = f"holds no result among {len(files)} JSON file(s); {first.name} {why}"
        raise UsageError.of("folder", str(path), problem, cure)
    return PeftResults(path, results, skipped)


def _foreign(content: Any) -> str:
    """Returns why this is not a result of PEFT's, or an empty string. Checks everything that `PeftResults` uses."""
    if not fits(content, _SHAPE):
        return "is not a result of PEFT's method comparison"
    if content["train_info"]["status"] == "success" and not _metrics(content):
        return "is broken: its status is success, but its last metrics hold no test result"
    pattern = (content["run_info"]["peft_config"] or {}).get("rank_pattern") or {}
    if not isinstance(pattern, dict) or not all(map(_is_ranks, pattern.values())):
        return "is broken: rank_pattern holds neither whole numbers nor lists of booleans"
    return ""


def _is_ranks(ranks: object) -> bool:
    if isinstance(ranks, list):
        return all(isinstance(kept, bool) for kept in ranks)
    return isinstance(ranks, int) and not isinstance(ranks, bool) and ranks >= 0


def _labels(results: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Returns unique labels: the experiment's name, with time or else file where several share name and seed."""
    runs = [result["run_info"] for result in results.values()]
    keys = [(run["experiment_name"], str(run["train_config"].get("seed"))) for run in runs]
    stamps = [(run["experiment_name"], str(run.get("created_at"))) for run in runs]
    labels = {}
    for file, key, stamp in zip(results, keys, stamps, strict=True):
        what = stamp[1] if stamps.count(stamp) == 1 else file.name
        labels[file] = f"{key[0]} ({what})" if keys.count(key) > 1 else key[0]
    return labels


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the test metrics: numbers of the last entry named "test ...". Earlier entries hold validation metrics."""
    rows = result["train_info"]["metrics"]
    return {
        name.replace(" ", "_"): float(value)
        for name, value in (rows[-1].items() if rows else ())
        if name.startswith("test ") and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _ranks(config: Mapping[str, Any] | None) -> dict[str, int]:
    """Maps sites to ranks, as far as the file states them."""
    pattern = (config or {}).get("rank_pattern") or {}
    return {_site(name): sum(ranks) if isinstance(ranks, list) else ranks for name, ranks in pattern.items()}


def _site(name: str) -> str:
    """Returns the module's name. AdaLoRA's keys end in a tensor's name; LoRA's may be anchored and escaped patterns."""
    name = re.sub(r"\.lora_E(\.[^.]+)?$", "", name)
    return name.removeprefix("base_model.model.").removeprefix("^").removesuffix("$").replace("\\.", ".")
