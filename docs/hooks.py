"""Generates pages when the site is built: one for each registered method, the API reference, the project's files."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from peftprune.methods.describe import EXAMPLE, describe_methods
from peftprune.methods.registry import load
from peftprune.strategy.options import SOURCES

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "benchmarks" / "results" / "mrpc-peers.json"

EXEMPT = """\
Baselines that cannot meet an arbitrary budget are marked in every table; their pages name the reason. They are compared
with the baseline in pairs like all others, but the headline keeps them apart, and results over several tasks leave them
out. `lora:r256(rank=256)` is LoRA at a rank of its own, such as the one that LoRPA starts from, marked in the same way.

`peft:NAME(option=…)` trains any method of the installed PEFT that needs a configuration alone, with the fields of its
configuration as options: `peft:ia3`, `peft:prefix-tuning(num_virtual_tokens=10)`, `peft:randlora`,
`peft:hira:small(r=4)`. LoRA with another start (`peft:pissa`, `peft:olora`, `peft:orthogonal`) meets the budget; the
others are marked."""

described = cache(describe_methods)


def on_config(config: MkDocsConfig) -> None:
    """Fills in the pages of the methods, and leaves out the findings until they are written."""
    nav: list[Any] = config.nav or []
    methods = next(entry for entry in nav if "Methods" in entry)
    methods["Methods"] = ["methods/index.md", *(f"methods/{m['name']}.md" for m in described())]
    if not (ROOT / "docs" / "findings.md").exists():
        evidence = next(entry for entry in nav if "Evidence" in entry)["Evidence"]
        evidence[:] = [page for page in evidence if "Findings" not in page]


def on_files(files: Files, config: MkDocsConfig) -> None:
    pages = {f"methods/{m['name']}.md": method_page(m) for m in described()}
    pages |= {"methods/index.md": methods_page(), "api.md": api_page()}
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        pages[name] = (ROOT / name).read_text()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))


def methods_page() -> str:
    rows = [(f"[`{m['name']}`]({m['name']}.md)", m["kind"], m["summary"], m["source"]) for m in described()]
    parts = [
        "# Methods",
        "One trainer trains every method under the same budget. `peftprune methods` prints the same descriptions.",
        table(("name", "kind", "what it does", "source"), rows),
        EXEMPT,
        "## Where defaults come from",
        table(("source", "meaning"), list(SOURCES.items())),
    ]
    return "\n\n".join(parts)


def method_page(m: dict[str, Any]) -> str:
    """Returns the page of a method: what it does, options, fidelity, and what it costs at its peak."""
    facts = {
        "source": m["source"],
        "kind": m["kind"],
        "prunes": m["prunes"],
        "decides": ", ".join(m["decides"]) or "never",
        "actions": ", ".join(m["actions"]) or "none",
        "signals": ", ".join(m["signals"]) or "none",
        "budget": m["exemption"] or f"met, and verified after training{', or marked' * (m['name'] == 'transplant')}",
    }
    heads = ("option", "default", "range", "source of the default", "meaning")
    options = [(f"`{o['name']}`", f"`{o['default']!r}`", o["range"], o["source"], o["help"]) for o in m["options"]]
    parts = [
        f"# {m['name']}",
        f"{m['summary']}\n\n{m['description']}",
        table(("property", "value"), list(facts.items())),
        "## Options",
        table(heads, options) if options else "The method has no options.",
        "## Fidelity",
        fidelity(m["name"], load(m["name"]).__name__),
        "## Cost at its peak",
        cost(m),
    ]
    return "\n\n".join(parts)


def fidelity(name: str, title: str) -> str:
    """Returns what `fidelity.md` says of a method."""
    text = (ROOT / "docs" / "fidelity.md").read_text()
    row = re.search(rf"^\| `{name}` \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    note = re.search(rf"^- \*\*{title}\.\*\* (.+?)(?=\n- |\n\n)", text, re.MULTILINE | re.DOTALL)
    if row is None:
        return "No golden cases from released code exist for this method. [Fidelity](../fidelity.md) has the details."
    found = f"It is compared with {row[1]} [golden cases](../fidelity.md) from {row[2]} at commit {row[3]}."
    return f"{found} {note[1]}" if note else found


def cost(m: dict[str, Any]) -> str:
    """Returns what a method needs at the start as planned, and at its peak as measured in the stored study."""
    found = []
    plan = m["plan"]
    if "error" in plan:
        found.append(f"It cannot be planned without further options: {plan['error']}")
    else:
        total = sum(p["steps"] for p in plan["phases"])
        phases = ", ".join(f"`{p['name']}` {p['steps'] / total:.0%} of the steps" for p in plan["phases"])
        if plan["initial_size"]:
            found.append(f"It starts with {plan['initial_size']:.2f} times the budget's parameters.")
        found.append(f"Its phases are: {phases}. Both hold for the default options and {EXAMPLE}.")
    if m["name"] in measured():
        params, size, flops = measured()[m["name"]]
        times = "" if m["exemption"] else f", {size:.2f} times its budget"
        found.append(
            f"In the stored study of 27 methods on MRPC (`{PEERS.relative_to(ROOT)}`) it has at most {params:,d} "
            f"adapter parameters{times}, and its run takes {flops:.2f} times the FLOPs of `lora`."
        )
    return "\n\n".join(found)


@cache
def measured() -> dict[str, tuple[int, float, float]]:
    """Returns peak parameters, their ratio to the budget, and FLOPs over those of LoRA, by method."""
    runs = defaultdict(list)
    for run in json.loads(PEERS.read_text())["runs"]:
        runs[run["method"]].append(run)
    lora = mean(run["flops"] for run in runs["lora"])
    return {
        name: (
            max(run["peak_params"] for run in found),
            max(run["peak_params"] / run["budget_params"] for run in found),
            mean(run["flops"] for run in found) / lora,
        )
        for name, found in runs.items()
    }


def api_page() -> str:
    """Returns a page with every public name of `peftprune` and of `peftprune.methods`."""
    found = ["# API reference", "The public names are imported on first use, so that `import peftprune` is fast."]
    for module, file in (("peftprune", "__init__.pyi"), ("peftprune.methods", "__init__.py")):
        found.append(f"## {module}")
        for node in ast.parse((ROOT / "peftprune" / module.partition(".")[2] / file).read_text()).body:
            if isinstance(node, ast.ImportFrom):
                source = f"peftprune.{node.module}" if node.level else node.module
                found += [f"::: {source}.{name.name}" for name in node.names]
    return "\n\n".join(found)


def table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [heads, ["---"] * len(heads), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
