"""What was run and what it cost: the ledger, settings, tasks, versions and methods, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from peftprune.analysis.history import costs
from peftprune.methods.describe import describe_method
from peftprune.methods.registry import names
from peftprune.report.table import Column, View, as_text, count, facts, number, plain, view, words
from peftprune.study.stored_study import StoredStudy

_TERA, _MEGA = 1e-12, 1e-6
_HELD = {
    "peak_params": count("peak_params"),
    "final_params": count("final_params"),
    "nonzero_params": count("nonzero_params"),
    "unique_params": count("unique_params"),
    "expanded_params": count("expanded_params"),
    "head_params": count("head_params"),
    "optimizer_bytes": number("optimizer_bytes", 2, "optimizer MB", factor=_MEGA),
    "adapter_bytes": number("adapter_bytes", 2, "adapter file MB", factor=_MEGA),
    "base_bytes": number("base_bytes", 1, "frozen weights MB", factor=_MEGA),
    "peak_memory_bytes": number("peak_memory_bytes", 0, "peak memory MB", factor=_MEGA),
}
_SPENT = {
    "steps": count("steps"),
    "samples": count("samples"),
    "forward_only_samples": count("forward_only_samples", "of them forward only"),
    "tokens": count("tokens"),
    "base_flops": number("base_flops", 2, "base TFLOP", factor=_TERA),
    "adapter_flops": number("adapter_flops", 2, "adapter TFLOP", factor=_TERA),
    "flops": number("flops", 2, "TFLOP", factor=_TERA),
    "seconds": number("seconds", 1, "training s"),
    "evaluation_seconds": number("evaluation_seconds", 1, "evaluation s"),
}
_KEY = ["task", "budget", "method", "seed"]


@dataclass(frozen=True)
class MethodEntry:
    """One method of the study: its label, how it was asked for, where it comes from, and its options (if any)."""

    label: str
    text: str
    source: str
    summary: str
    known: bool
    options: View | None


def ledgers(comparison: StoredStudy) -> pd.DataFrame:
    """One row a finished arm: task, budget, method, seed, and every field of its ledger but the seconds by phase."""
    rows = [
        {**key, **{name: value for name, value in result["ledger"].items() if name != "phase_seconds"}}
        for key, folder in comparison.arms()
        if (result := folder.result()) is not None
    ]
    return pd.DataFrame(rows, columns=None if rows else _KEY)


def ledger_views(comparison: StoredStudy) -> list[View]:
    """What every arm held, what it spent, and its seconds by phase."""
    frame, spent = ledgers(comparison), costs(comparison)
    if frame.empty:
        return []
    names = _names(comparison)
    held = [column for name, column in _HELD.items() if name in frame.columns]
    # A field that a later version adds is shown under its own name.
    new = [count(name) for name in frame.columns if name not in {*_KEY, *_HELD, *_SPENT}]
    phases = [
        *names,
        words("phase"),
        count("start", "first step"),
        count("stop", "stops before"),
        number("seconds", 1),
        number("share", 3, "share of the arm’s"),
    ]
    clock = "Seconds are wall-clock and compare only between arms that ran on the same idle machine."
    flops = "TFLOP: analytic, a multiply-add counted as two; embeddings, head and element-wise work left out."
    once = "unique: tied tensors once; expanded: with a copy for every site that shares. MB: a million bytes."
    return [
        view("What every arm held", "ledger", frame, [*names, *held], f"Adapter parameters; {once}"),
        view("What every arm spent", "ledger", frame, [*names, *_SPENT.values(), *new], f"{flops} {clock}"),
        view("Seconds by phase", "costs", spent, phases, clock),
    ]


def setup_views(comparison: StoredStudy) -> list[View]:
    """Model, tasks, budgets, settings, versions and hardware."""
    request, others = comparison.request, _other_settings(comparison)
    study = {
        "model": request["model"],
        "adapted layers": request["target_modules"],
        "sites": request["sites"],
        "seeds": list(request["seeds"]),
        "number format": request["dtype"],
        "threads": request["threads"],
    }
    found = [
        facts("Study", "study", study),
        view("Tasks", "tasks", pd.DataFrame([_task(t) for t in request["tasks"]]), _TASK_COLUMNS),
        view("Budgets", "budgets", *_budgets(request["budgets"])),
        facts("Training settings", "settings", request["settings"], "" if len(others) else "The same for every arm."),
    ]
    if not others.empty:
        columns = [*_names(comparison), words("setting"), plain("value"), plain("study")]
        found.append(view("Arms that were trained with other settings", "other_settings", others, columns))
    versions, hardware = request["versions"], request["hardware"]
    return [*found, facts("Versions", "versions", versions), facts("Hardware", "hardware", hardware)]


def method_entries(comparison: StoredStudy) -> list[MethodEntry]:
    """The methods of the study: what is known of each, with its options and where their defaults come from."""
    registered, configs = names(), _configs(comparison)
    found = []
    for asked in comparison.request["methods"]:
        label, text = asked["label"], asked["text"]
        config = configs.get(label, {})
        # An arm that has not begun has left no configuration; then the text that asked for it begins with its name.
        name = config.get("method", text.partition("(")[0].partition(":")[0])
        # A registered name says nothing of code that came from elsewhere.
        entry = describe_method(name) if name in registered and not config.get("source") else None
        options = _options(label, entry, config.get("options", {}))
        source, summary = (entry["source"], entry["summary"]) if entry else ("", "")
        found.append(MethodEntry(label, text, source, summary, entry is not None, options))
    return found


def failed_arms(comparison: StoredStudy) -> list[tuple[str, str]]:
    """Each failed arm's name and message."""
    return list(comparison.failures.items())


def pending_arms(comparison: StoredStudy) -> list[str]:
    """Names of the arms that have neither finished nor failed."""
    return [
        comparison.name(key) for key, folder in comparison.arms() if folder.result() is None and folder.error() is None
    ]


_TASK_COLUMNS = (
    words("name", "task"),
    words("kind"),
    words("metrics"),
    count("train_examples", "training examples"),
    words("splits", "evaluation examples"),
    words("evaluation_split", "reported split"),
    words("source"),
)


def _task(task: dict[str, Any]) -> dict[str, Any]:
    return task | {"splits": {split: f"{n:,}" for split, n in task["evaluation_examples"].items()}}


def _names(comparison: StoredStudy) -> list[Column]:
    """The columns that name an arm; task and budget only where there are several."""
    several = [words("task")] * (len(comparison.tasks) > 1) + [words("budget")] * (len(comparison.budgets) > 1)
    return [words("method"), count("seed"), *several]


def _budgets(budgets: list[dict[str, Any]]) -> tuple[pd.DataFrame, list[Column]]:
    names = list(dict.fromkeys(name for b in budgets for name in b))
    shown = [n for n in names if any(b.get(n) is not None for b in budgets)]
    rows = [{name: b.get(name) for name in shown} for b in budgets]
    return pd.DataFrame(rows, columns=shown, dtype=object), [words(shown[0], "budget"), *map(plain, shown[1:])]


def _other_settings(comparison: StoredStudy) -> pd.DataFrame:
    common = comparison.request["settings"]
    rows = [
        {**key, "setting": name, "value": value, "study": common.get(name)}
        for key, folder in comparison.arms()
        if (result := folder.result()) is not None
        for name, value in result["settings"].items()
        if value != common.get(name)
    ]
    return pd.DataFrame(rows, columns=[*_KEY, "setting", "value", "study"], dtype=object)


def _configs(comparison: StoredStudy) -> dict[str, dict[str, Any]]:
    """Label to the stored configuration of one of its arms."""
    found: dict[str, dict[str, Any]] = {}
    for key, folder in comparison.arms():
        if key["method"] not in found and folder.result() is not None:
            found[key["method"]] = folder.config()
    return found


def _options(label: str, entry: dict[str, Any] | None, used: dict[str, Any]) -> View | None:
    described = {o["name"]: o for o in entry["options"]} if entry else {}
    rows = [
        {
            "name": name,
            "value": used.get(name),
            "default": described.get(name, {}).get("default"),
            "mark": described.get(name, {}).get("mark", ""),
            "help": described.get(name, {}).get("help", ""),
        }
        for name in dict.fromkeys([*described, *used])
    ]
    if not rows:
        return None
    frame = pd.DataFrame(rows, dtype=object)
    columns = [words("name", "option"), plain("value", "here")]
    if entry:
        marks = Column("default from", lambda r: words("mark").cell({"mark": as_text(r["mark"] or None)}), False)
        columns += [plain("default"), marks, words("help", "meaning")]
    return view(f"Options of {label}", f"options {label}", frame, columns)
