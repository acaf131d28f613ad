"""The tables of the speed benchmarks, from the files in `results/`. It needs only the standard library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = Sequence[str]


def sections(results: Path) -> str:
    """Returns a heading, a line on the measurement, and a table for each file, in the order of the parts."""
    files = [results / f"speed-{part}-{device}.json" for part in _PARTS for device in ("cpu", "cuda")]
    return "\n".join(section(json.loads(path.read_text())) for path in files if path.is_file())


def section(found: dict[str, Any]) -> str:
    """Returns one part's heading, its description and its table."""
    device = "CPU" if found["device"] == "cpu" else found["device"]
    threads = "" if found["threads"] is None else f", threads per arm: {found['threads']}"
    place = f"{device}, {found['cores']} cores{threads}, {found['dtype']}"
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "transformers", "peft"))
    title, text = _PARTS[found["part"]]
    return f"### {title} ({device})\n\n{text} Measured on {place}; {versions}.\n\n{_TABLES[found['kind']](found)}"


def _lines(head: Row, rows: Sequence[Row]) -> str:
    """Returns a table whose first column is text and whose other columns are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def _times(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(row: dict[str, Any]) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"


def _plain(found: dict[str, Any]) -> str:
    settings, gap = found["settings"], found["accuracy"]
    sides = []
    for side in ("study", "script"):
        scores = found[side]["accuracy"]
        std = "–" if scores["std"] is None else f"{scores['std']:.4f}"
        sides.append([f"{scores['mean']:.4f}", std])
    interval = "–" if gap["low"] is None else f"{gap['low']:+.4f} to {gap['high']:+.4f}"
    rows = [
        ["runs", str(settings["seeds"]), str(settings.get("scripts", settings["seeds"]))],
        ["dtype", found["study"]["dtype"], found["script"]["dtype"]],
        [
            "workers × threads",
            f"{found['study']['workers']} × {found['study']['threads']}",
            f"1 × {found['script']['threads']}",
        ],
        ["accuracy, mean", sides[0][0], sides[1][0]],
        ["accuracy, std", sides[0][1], sides[1][1]],
        ["wall-clock, the same number of runs", _times(found["ratio"]), "1"],
        ["of it training", _times(found["training_ratio"]), "1"],
    ]
    last = f"\nDifference in accuracy {gap['difference']:+.4f}, 95 % interval {interval} (Welch, over seeds).\n"
    what = f"{settings['task']}, {settings['targets']}, {settings['method']}"
    return _lines([what, "study", "scripts"], rows) + last


def _start(found: dict[str, Any]) -> str:
    rows = [[name, _times(share)] for name, share in found["parts"].items()]
    whole = found["start"]
    last = f"\nWhole start {_times(whole['median'])} of the script's, 95 % interval {_interval(whole)}.\n"
    return _lines(["part", "of the script's start"], rows) + last


def _limit(found: dict[str, Any]) -> str:
    slowest = min(row["flops_per_second"] for row in found["products"])
    products = [
        [row["dtype"], _count(row["threads"]), f"{row['flops_per_second'] / slowest:.2f}"] for row in found["products"]
    ]
    steps = [
        [f"{row['task']}, {row['targets']}", _count(row["threads"]), _percent(row["share_of_limit"])]
        for row in found["steps"]
    ]
    groups = list(next(iter(found["profiles"].values())))
    shares = [[group, *[_percent(p[group]) for p in found["profiles"].values()]] for group in groups]
    return "\n".join(
        [
            _lines(["matrix products", "threads", "relative to the slowest"], products),
            _lines(["a step", "threads", "share of the limit"], steps),
            _lines(["share of a step", *found["profiles"]], shares),
        ]
    )


def _count(threads: int | None) -> str:
    return "–" if threads is None else str(threads)


def _overhead(found: dict[str, Any]) -> str:
    rows = [
        [
            row["method"],
            _times(row["median"]),
            _interval(row),
            _times(row["total"]),
            str(row["rounds"]),
            str(row["events"]),
        ]
        for row in found["rows"]
    ]
    text = _lines(["method", "step", "95 % interval", "all steps", "steps", "events"], rows)
    versus = [f"`{r['method']}` {_times(r['median'])} of `{r['against']}` ({_interval(r)})" for r in found["versus"]]
    return text + (f"\nStep against step: {'; '.join(versus)}.\n" if versus else "")


def _after_cut(found: dict[str, Any]) -> str:
    rows = [
        [
            row["targets"],
            _times(row["median"]),
            _interval(row),
            *[f"{row['lorpa_bytes'][n]:,} / {row['lora_bytes'][n]:,}" for n in ("adapter", "optimizer")],
        ]
        for row in found["rows"]
    ]
    head = ["adapted layers", "step", "95 % interval", "adapter bytes, lorpa / lora", "optimizer bytes, lorpa / lora"]
    return _lines(head, rows)


def _growth(found: dict[str, Any]) -> str:
    rows = [[f"{row['what']}: {row['size']}", _times(row["median"]), _interval(row)] for row in found["rows"]]
    return _lines(["size", "time", "95 % interval"], rows)


def _parallel(found: dict[str, Any]) -> str:
    same = {True: "identical", False: "**different**", None: ""}
    rows = [
        [row["way"], f"`{row['options']}`", _times(row["median"]), same[found["identical"].get(row["way"])]]
        for row in found["rows"]
    ]
    text = _lines(["workers × threads", "options", "arms an hour", "results, compared with 1x1"], rows)
    return text + "".join(f"\n{way}: not measured because {why}.\n" for way, why in found["skipped"].items())


_SCRIPT = (
    "A study of all seeds compared with [a plain script](speed/plain_script.py) of PEFT and Trainer, run once per "
    "seed: the time of the whole study, including imports, tokenisation and evaluation, divided by the time of as many "
    "scripts, each taken at the scripts' median."
)
_PARTS: dict[str, tuple[str, str]] = {
    "plain-mrpc": ("Compared with a plain script: MRPC", _SCRIPT),
    "plain-rte": ("Compared with a plain script: RTE", _SCRIPT),
    "plain-adalora": ("Compared with a plain script: PEFT's AdaLoRA", _SCRIPT),
    "start": (
        "From the command to the first step",
        "A study of two seeds with two workers compared with the plain script, in turn, each from the start of its "
        "process to the end of its first optimizer step: the parts' medians in units of the script's median.",
    ),
    "limit": (
        "A step compared with the machine's limit",
        "The limit is the fastest large square matrix product in the same run. The FLOPs of a step are those of the "
        "ledger, and its shares are the operators' own time in a profile with one thread.",
    ),
    "overhead": (
        "Cost of decisions and signals",
        "Each method with decisions compared with plain LoRA that has the same ranks, ties and dropped layers at every "
        "step, on the same batches, step by step in one process: the median of the steps' ratios, the ratio of their "
        "sums, the number of measured steps, and the number of them in which a decision changed adapters. `lora` "
        "compared with itself shows the noise.",
    ),
    "after-cut": (
        "LoRPA after its cut",
        "Compared with LoRA that has the final rank from the start, step by step in one process.",
    ),
    "growth": (
        "Growth",
        "Step times relative to the smallest size, step by step in one process; for the arms of a study, times of the "
        "whole command.",
    ),
    "parallel": (
        "Arms side by side",
        "One small study as a whole command, relative to one worker with two threads (with one on a GPU). "
        "Ray trains as many arms at a time as the machine has cores.",
    ),
}
_TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "plain": _plain,
    "start": _start,
    "limit": _limit,
    "overhead": _overhead,
    "after-cut": _after_cut,
    "growth": _growth,
    "parallel": _parallel,
}
