"""The tables of `results/calibration.json` and `results/calibration-rounds.json` in `benchmarks/README.md`."""

from __future__ import annotations

from statistics import mean
from typing import Any

_FALSE = ("false_different", "false_equivalent", "false_not_worse")


def section(found: dict[str, Any]) -> str:
    """Returns one row per number of seeds and deviation, over metrics and sizes, and the cells that miss."""
    lines = [
        "| seeds | between-seed deviation | coverage: mean, lowest to highest | false better or worse "
        "| false equivalent | false not worse | shift found | equality found | cells that miss |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    cells = found["cells"]
    for seeds, deviation in dict.fromkeys((c["seeds"], c["deviation"]) for c in cells):
        mine = [c for c in cells if (c["seeds"], c["deviation"]) == (seeds, deviation)]
        coverage = [c["coverage"] for c in mine]
        texts = [str(seeds), f"{deviation} ({found['deviations'][deviation]:g})"]
        texts += [f"{mean(coverage):.1%}, {min(coverage):.1%} to {max(coverage):.1%}"]
        texts += [f"{mean(c[name] for c in mine):.1%}" for name in (*_FALSE, "found", "held")]
        texts += [f"{sum(bool(c['misses']) for c in mine)} of {len(mine)}"]
        lines.append(f"| {' | '.join(texts)} |")
    intro = (
        f"{found['repetitions']} studies without and as many with a difference of {found['margin']:g}, which is also "
        f"the margin, in each of {len(cells)} cells; {found['resamples']} resamples each."
    )
    missed = [
        f"{c['metric']}, {c['examples']:,} examples, {c['seeds']} seeds, deviation {c['deviation']}: "
        f"{', '.join(c['misses'])}"
        for c in cells
        if set(c["misses"]) - {"coverage high"}
    ]
    wide = sum(c["misses"] == ["coverage high"] for c in cells)
    rest = f"In {wide} cells the interval is only too wide, with a coverage above 97 %. "
    rest += f"Cells that miss otherwise: {'; '.join(missed)}." if missed else "No cell misses otherwise."
    return "\n".join([intro, "", *lines, "", rest, ""])


def rounds_section(found: dict[str, Any]) -> str:
    """Returns one row per cell of the studies in rounds, and the cells that miss."""
    lines = [
        "| metric | examples | between-seed deviation | true differences | false verdict, rounds | same, fixed "
        "| pairs decided, rounds | same, fixed | arms trained |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for cell in found["cells"]:
        deviation = f"{cell['deviation']} ({found['deviations'][cell['deviation']]:g})"
        texts = [cell["metric"], f"{cell['examples']:,}", deviation, cell["truth"]]
        texts += [f"{cell[name]:.1%}" for name in ("false", "false_fixed", "decided", "decided_fixed", "arms")]
        lines.append(f"| {' | '.join(texts)} |")
    intro = (
        f"{found['repetitions']} studies in each of {len(found['cells'])} cells, with rounds of "
        f"{', '.join(map(str, found['rounds']))} seeds and a margin of {found['margin']:g}."
    )
    missed = [
        f"{c['metric']}, {c['examples']:,} examples, deviation {c['deviation']}, {c['truth']}: {', '.join(c['misses'])}"
        for c in found["cells"]
        if c["misses"]
    ]
    rest = f"Cells with more than 5 % by more than chance: {'; '.join(missed)}." if missed else "No cell misses."
    return "\n".join([intro, "", *lines, "", rest, ""])


def same_section(found: dict[str, Any]) -> str:
    """Returns, by task, the verdicts of the studies of LoRA against itself, and the first studies' differences."""
    return "\n".join(_same(task, part) for task, part in found.items())


def _same(task: str, found: dict[str, Any]) -> str:
    number, counts = found["studies"], found["verdicts"]
    false = counts.get("better", 0) + counts.get("worse", 0)
    lines = [
        f"{task}: {number} studies of {found['seeds']} seeds against {found['seeds']} others, drawn from "
        f"{found['arms']} arms (accuracy {found['mean']:.3f} ± {found['deviation']:.3f}). "
        f"Better or worse: {false} ({false / number:.1%}). "
        + ", ".join(f"{verdict}: {count}" for verdict, count in counts.items() if verdict not in ("better", "worse"))
        + ".",
        "",
        f"| the first {len(found['first'])} | 95 % interval | verdict |",
        "|---:|---|---|",
    ]
    for row in found["first"]:
        lines.append(f"| {row['difference']:+.4f} | {row['low']:+.4f} to {row['high']:+.4f} | {row['verdict']} |")
    return "\n".join([*lines, ""])
