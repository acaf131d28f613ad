"""The ledger, settings, tasks, versions and methods of a study, as tables."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from peftprune.analysis.frames import Frames
from peftprune.analysis.runs import KEY
from peftprune.errors import UsageError
from peftprune.methods.describe import describe_method
from peftprune.methods.registry import names
from peftprune.methods.request import method_name
from peftprune.report.table import Column, Table, count, facts, number, plain, table
from peftprune.study.stored_study import StoredStudy

_TERA, _MEGA = 1e-12, 1e-6
_HELD = {
    **{f"{n}_params": count(f"{n}_params") for n in ("peak", "final", "nonzero", "unique", "expanded", "head")},
    "optimizer_bytes": number("optimizer_bytes", 2, "optimizer MB", factor=_MEGA),
    "adapter_bytes": number("adapter_bytes", 2, "adapter file MB", factor=_MEGA),
    "base_bytes": number("base_bytes", 1, "frozen weights MB", factor=_MEGA),
    "drift": number("drift", 4),
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


def ledger_tables(frames: Frames) -> list[Table]:
    ledger = frames.ledger
    if ledger.empty:
        return []
    arm = _arm_columns(frames.study)
    held = [column for name, column in _HELD.items() if name in ledger.columns]
    # A field that a later version adds is shown under its own name.
    new = [count(name) for name in ledger.columns if name not in {*KEY, *_HELD, *_SPENT}]
    steps = count("start", "first step"), count("stop", "stops before")
    phases = [*arm, plain("phase"), *steps, number("seconds", 1), number("share", 3, "share of the arm’s")]
    clock = "Seconds are wall-clock time, comparable only between arms that ran on the same idle machine."
    flops = "TFLOP: analytic, a multiply-add counted as two; embeddings, head and element-wise operations excluded."
    once = "unique: tied tensors once; expanded: with a copy for every site that shares. MB: a million bytes."

    def part(caption: str, columns: Sequence[Column], note: str) -> Table:
        return table(caption, ledger, [*arm, *columns], frame="ledger", note=note)

    return [
        part("What every arm held", held, f"Adapter parameters; {once}"),
        part("What every arm spent", [*_SPENT.values(), *new], f"{flops} {clock}"),
        table("Seconds by phase", frames.costs, phases, frame="costs", note=clock),
    ]


def setup_tables(study: StoredStudy) -> list[Table]:
    request, others = study.request, _other_settings(study)
    shown = {"adapted layers": "target_modules", "number format": "dtype"}
    names = ("model", "adapted layers", "sites", "seeds", "number format", "threads")
    about = {name: request[shown.get(name, name)] for name in names}
    if request.get("product_seconds"):
        about["seconds per matrix product"] = {d: f"{s:.1e}" for d, s in request["product_seconds"].items()}
    if request.get("left_out"):
        about["left out"] = request["left_out"]
    tasks = [t | {"splits": {s: f"{n:,}" for s, n in t["evaluation_examples"].items()}} for t in request["tasks"]]
    found = [
        facts("Study", "study", about),
        table("Tasks", tasks, _TASK_COLUMNS, frame="tasks"),
        table("Budgets", *_budgets(request["budgets"]), frame="budgets"),
        facts("Training settings", "settings", request["settings"], "" if others else "The same for every arm."),
    ]
    if others:
        columns = [*_arm_columns(study), plain("setting"), plain("value"), plain("study")]
        found.append(table("Arms trained with other settings", others, columns, frame="other_settings"))
    versions, hardware = request["versions"], request["hardware"]
    return [*found, facts("Versions", "versions", versions), facts("Hardware", "hardware", hardware)]


def method_entries(study: StoredStudy) -> list[dict[str, Any]]:
    """Returns the study's methods with their descriptions, their options, and the sources of the defaults."""
    registered, configs = names(), _configs(study)
    found = []
    for requested in study.request["methods"]:
        label, text, entry = requested["label"], requested["text"], None
        config = configs.get(label, {})
        # Without a finished arm there is no configuration; the text of the request then begins with the method's name.
        name = config.get("method") or method_name(text.partition("(")[0])
        known = name in registered or name.startswith("peft:")
        # Code from elsewhere may carry a registered name, and another version of PEFT may lack a method.
        with suppress(UsageError):
            entry = describe_method(name) if known and not config.get("source") else None
        options = _options(label, entry, config.get("options", {}))
        about = {name: entry[name] if entry else "" for name in ("source", "summary")}
        found.append({"label": label, "text": text, "known": entry is not None, "options": options} | about)
    return found


_TASK_COLUMNS = (
    plain("name", "task"),
    plain("kind"),
    plain("metrics"),
    count("train_examples", "training examples"),
    plain("splits", "evaluation examples"),
    plain("evaluation_split", "reported split"),
    plain("source"),
)


def _arm_columns(study: StoredStudy) -> list[Column]:
    """Returns the columns that identify an arm; task and budget only where there are several."""
    several = [plain("task")] * (len(study.tasks) > 1) + [plain("budget")] * (len(study.budgets) > 1)
    return [plain("method"), count("seed"), *several]


def _budgets(budgets: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Column]]:
    fields = dict.fromkeys(name for b in budgets for name, value in b.items() if value is not None)
    rows = [{name: b.get(name) for name in fields} for b in budgets]
    return rows, [plain(name, "budget" if name == "label" else None) for name in fields]


def _other_settings(study: StoredStudy) -> list[dict[str, Any]]:
    common = study.request["settings"]
    return [
        {**key, "setting": name, "value": value, "study": common.get(name)}
        for key, _, result in study.finished()
        for name, value in result["settings"].items()
        if value != common.get(name)
    ]


def _configs(study: StoredStudy) -> dict[str, dict[str, Any]]:
    """Maps labels to the stored configuration of a finished arm."""
    first = {key["method"]: folder for key, folder, _ in reversed(list(study.finished()))}
    return {method: folder.config() for method, folder in first.items()}


def _options(label: str, entry: dict[str, Any] | None, used: dict[str, Any]) -> Table | None:
    described = {o["name"]: o for o in entry["options"]} if entry else {}
    missing = {"default": None, "source": None, "help": ""}
    rows = [{**missing, **described.get(n, {}), "name": n, "value": used.get(n)} for n in {**described, **used}]
    if not rows:
        return None
    columns = [plain("name", "option"), plain("value", "here")]
    if entry:
        columns += [plain("default"), plain("source", "default from"), plain("help", "meaning")]
    return table(f"Options of {label}", rows, columns, frame=f"options {label}")
