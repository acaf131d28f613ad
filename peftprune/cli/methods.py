"""Prints the methods as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from peftprune.cli.terminal import console
from peftprune.methods.describe import EXAMPLE
from peftprune.strategy.options import SOURCES


def show_methods(methods: Sequence[Mapping[str, Any]]) -> None:
    """Prints paper and purpose, decisions and plan, description and options of what `describe_methods` returned."""
    about = _table("Methods", "method", "year", "source", "prunes", "what it does")
    behaviour = _table("Behaviour", "method", "decides", "actions", "phases", "initial size", "uses", "budget")
    texts = _table("Descriptions", "method", "description")
    options = _table("Options", "method", "option", "default", "range", "source", "meaning")
    for m in methods:
        name = m["name"]
        about.add_row(name, str(m["year"] or "–"), m["source"], m["prunes"], m["summary"])
        decides = ", ".join(m["decides"]) or ("never" if m["prunes"] == "nothing" else "not declared")
        actions = ", ".join(m["actions"]) or ("none" if m["prunes"] == "nothing" else "not declared")
        behaviour.add_row(name, decides, actions, *_planned(m["plan"], m["signals"]), m["exemption"] or "met")
        texts.add_row(name, m["description"] or m["summary"])
        for o in m["options"]:
            options.add_row(name, *(str(o[part]) for part in ("name", "default", "range", "source", "help")))
    for shown in (about, behaviour, texts, options):
        console().print(shown)
    console().print(
        f"Phases and initial size: with default options for {EXAMPLE}; the size is relative to the budget. "
        "Uses: signals, a training penalty, multipliers on components that vary over steps, gates, frozen factors. "
        "peft:NAME(option=…) is any method of the installed PEFT, such as peft:ia3. "
        f"Sources: {'; '.join(f'{name}: {meaning}' for name, meaning in SOURCES.items())}."
    )


def _planned(plan: Mapping[str, Any], signals: Sequence[str]) -> tuple[str, str, str]:
    """Returns the cells of a method's plan: phases, initial size, and what it uses."""
    if "error" in plan:
        return f"cannot be planned: {plan['error']}", "–", "–"
    run = sum(p["steps"] for p in plan["phases"])
    phases = [f"{p['name']} {p['steps'] / run:.0%}{' (no training)' * (p['kind'] != 'train')}" for p in plan["phases"]]
    uses = [*signals, *(word for word in ("penalty", "multipliers") if plan[word])]
    uses += [f"a gate per {plan['gate']}"] * (plan["gate"] != "none") + [f"frozen {name}" for name in plan["frozen"]]
    size = "–" if plan["initial_size"] is None else f"{plan['initial_size']:.2f}×"
    return ", ".join(phases), size, ", ".join(uses) or "–"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
