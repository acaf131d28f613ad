"""Write the tables of `benchmarks/README.md` from the files in `results/`, between their markers.

python benchmarks/tables.py            # rewrite
python benchmarks/tables.py --check    # only check that they are up to date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from calibration.table import rounds_section, same_section, section
from speed.tables import sections

HERE = Path(__file__).parent
README = HERE / "README.md"
_MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SPEED = re.compile(r"(<!-- tables: speed -->\n).*?(<!-- end -->)", re.DOTALL)
_CALIBRATION = re.compile(r"(<!-- table of calibration -->\n).*?(<!-- end -->)", re.DOTALL)
_ROUNDS = re.compile(r"(<!-- table of calibration in rounds -->\n).*?(<!-- end -->)", re.DOTALL)
_SAME = re.compile(r"(<!-- table of LoRA against itself -->\n).*?(<!-- end -->)", re.DOTALL)
_CUDA = re.compile(r"(<!-- tests on a GPU -->\n).*?(<!-- end -->)", re.DOTALL)
_LEVEL = 0.05


def table(found: dict[str, Any]) -> str:
    """Returns one row per task, budget and method: the primary metric over seeds and its difference from the first."""
    several = len(found["tasks"]) > 1
    # Older files do not have it.
    mcnemar = "mcnemar" in found
    lines = [
        "| task | method | metric | mean | std | seeds | final params | peak params | difference | own 95 % interval "
        "| p (Holm) | smallest detectable | verdict |" + " McNemar |" * mcnemar,
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|---:|---:|---|" + "---|" * mcnemar,
    ]
    against = {(r["task"], r["method"], r["metric"]): r for r in found["against"]}
    for task in found["tasks"]:
        metric = task["metrics"][0]
        for method in (m["label"] for m in found["methods"]):
            place = (task["name"], method, "done")
            runs = [r for r in found["runs"] if (r["task"], r["method"], r["status"]) == place]
            scores = [r[metric] for r in runs]
            row = [task["name"], method, metric, f"{mean(scores):.4f}"]
            row += [f"{stdev(scores):.4f}" if len(scores) > 1 else "–", str(len(scores))]
            row += [f"{mean(r[n] for r in runs):,.0f}" for n in ("final_params", "peak_params")]
            row += _difference(against.get((task["name"], method, metric)))
            row += [_seeds_apart(found["mcnemar"], task["name"], method)] if mcnemar else []
            lines.append(f"| {' | '.join(row)} |")
    text = "\n".join(lines) + "\n"
    text += _pooled(found) if several else ""
    text += "\n" + " ".join(found["rounds"]) + "\n" if "rounds" in found else ""
    return text + (_trials(found) if "trials" in found else "")


def _trials(found: dict[str, Any]) -> str:
    """Returns the mean validation score of each method at each learning rate, the chosen one in bold."""
    scores: dict[tuple[str, str, float], list[float]] = {}
    for row in found["trials"]:
        scores.setdefault((row["task"], row["method"], row["learning_rate"]), []).append(row["score"])
    rates = sorted({rate for *_, rate in scores})
    lines = [f"| task | method | trials | {' | '.join(f'{rate:g}' for rate in rates)} | at the edge |"]
    lines.append("|---|---|---:|" + "---:|" * len(rates) + "---|")
    for choice in found["chosen"]:
        row = [choice["task"], choice["label"], str(choice["trials"])]
        for rate in rates:
            seeds = scores.get((*row[:2], rate), [])
            text = "diverged" if None in seeds else f"{mean(seeds):.4f}" if seeds else "–"
            row.append(f"**{text}**" if rate == choice["point"]["learning_rate"] else text)
        lines.append(f"| {' | '.join(row)} | {choice['edge'] or 'no'} |")
    return (
        "\nMean scores on the validation data by learning rate; the chosen ones are bold.\n\n" + "\n".join(lines) + "\n"
    )


def _difference(row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return [""] * 5
    detectable = "–" if row["detectable"] is None else f"{row['detectable']:.4f}"
    interval = f"{_signed(row['low'])} to {_signed(row['high'])}"
    return [_signed(row["difference"]), interval, f"{row['p_holm']:.3f}", detectable, row["verdict"]]


def _seeds_apart(rows: list[dict[str, Any]], task: str, method: str) -> str:
    """Returns the number of seeds in which a method's model is right significantly more often than the first's."""
    mine = [r for r in rows if (r["task"], r["method"]) == (task, method)]
    better = sum(r["p_holm"] < _LEVEL and r["only_method"] > r["only_baseline"] for r in mine)
    return f"{better} of {len(mine)}" if mine else ""


def _signed(value: float) -> str:
    # Adding 0.0 removes the sign of a value that rounds to zero.
    return f"{round(value, 4) + 0.0:+.4f}"


def _pooled(found: dict[str, Any]) -> str:
    ranks = {r["method"]: f"{r['average_rank']:.2f}" for r in found["average_ranks"]}
    differences = [
        f"{r['method']} {_signed(r['gain'])} over {r['pairs']} pairs (p = {r['p_holm']:.3f}; {r['verdict']})"
        for r in found["pooled"]
    ]
    places = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
    return f"\nOver all tasks: {'; '.join(differences)}. Average ranks: {places}.\n"


def _on_gpu(found: dict[str, Any]) -> str:
    """Returns how many of the tests that need a GPU pass, and on which device."""
    outcomes = list(found["tests"].values())
    counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes)))
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "transformers", "peft"))
    return f"{found['device']}, {versions}: {counts}.\n"


def written(text: str) -> str:
    """Returns the README with every table written again."""

    def fill(found: re.Match[str]) -> str:
        result = json.loads((HERE / "results" / f"{found['name']}.json").read_text())
        return f"{found[1]}{table(result)}{found[3]}"

    parts = (
        (_CALIBRATION, section, "calibration"),
        (_ROUNDS, rounds_section, "calibration-rounds"),
        (_SAME, same_section, "calibration-same"),
        (_CUDA, _on_gpu, "cuda"),
    )
    for marked, write, name in parts:
        part = write(json.loads((HERE / "results" / f"{name}.json").read_text()))
        text = marked.sub(lambda found, new=part: f"{found[1]}{new}{found[2]}", text)
    speed = sections(HERE / "results")
    return _SPEED.sub(lambda found: f"{found[1]}{speed}{found[2]}", _MARKED.sub(fill, text))


if __name__ == "__main__":
    before = README.read_text()
    after = written(before)
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if after == before else "benchmarks/README.md is out of date: run python benchmarks/tables.py")
    README.write_text(after)
