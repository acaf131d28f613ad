"""`peftprune methods` shows what methods declare and plan, at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from peftprune.cli import terminal
from peftprune.cli.app import app
from peftprune.methods import registry
from peftprune.methods.describe import describe_method, describe_methods
from peftprune.methods.registry import load, names, register
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import SOURCES

PLANNED: dict[str, dict[str, Any]] = {
    "lora": {"initial_size": 1.0, "gate": "none", "frozen": []},
    "lorpa": {"initial_size": 32.0},
    "adalora": {"initial_size": 1.5, "gate": "rank", "penalty": True, "multipliers": False},
    "adalora-peft": {"initial_size": 1.5, "penalty": True},
    "increlora": {"initial_size": 0.62, "penalty": True, "multipliers": True},
    "weightlora": {"initial_size": 2.0, "gate": "site"},
    "dylora": {"multipliers": True, "penalty": False},
    "rslora": {"initial_size": 1.0, "frozen": []},
    "lora-fa": {"initial_size": 1.0, "frozen": ["A"]},
    "dora": {"initial_size": 1.0},
    "head-only": {"initial_size": None},
    "full": {"initial_size": None},
}
PHASES = {
    "lora": {"train": 1000},
    "lorpa": {"dense": 200, "pruned": 800},
    "lora-drop": {"probe": 96, "score (forward)": 32, "finetune": 872},
    "lora-restart": {"first": 200, "second": 800},
    "eva": {"calibrate (forward)": 32, "train": 968},
    "head-only": {"train": 1000},
}
YEARLESS = {"full", "random-rank"}
"""Methods that no paper introduced."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REGISTERED", {})


def test_every_method_plans_the_example() -> None:
    described = describe_methods()
    assert [m["name"] for m in described] == names()
    assert not [m["name"] for m in described if "error" in m["plan"]]
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize("name", PLANNED)
def test_the_plan_of_a_method_is_described(name: str) -> None:
    plan = describe_method(name)["plan"]
    assert {field: plan[field] for field in PLANNED[name]} == PLANNED[name]


@pytest.mark.parametrize("name", PHASES)
def test_the_phases_of_a_method_are_described(name: str) -> None:
    phases = describe_method(name)["plan"]["phases"]
    found = {p["name"] + (" (forward)" if p["kind"] == "forward" else ""): p["steps"] for p in phases}
    assert found == PHASES[name]


def test_declarations_are_described() -> None:
    found = describe_method("lora-drop")
    assert (found["prunes"], found["decides"], found["signals"]) == ("sites", ["once"], ["output_energy"])
    assert found["actions"] == ["share adapters", "restart adapters"]
    assert found["exemption"] is None
    assert describe_method("full")["exemption"] == load("full").exemption


class Broken(RankPruningStrategy):
    """Fails."""

    name = "broken"

    def spec(self, sites: Any, budget: Any) -> Any:
        raise ValueError("no idea")


class Undeclared(RankPruningStrategy):
    """Declares nothing."""

    name = "undeclared"


def test_a_method_of_others_that_fails_leaves_the_table_standing(capsys: pytest.CaptureFixture[str]) -> None:
    from peftprune.cli.methods import show_methods

    register(Broken)
    register(Undeclared)
    described = {m["name"]: m for m in describe_methods()}
    assert described["broken"]["plan"] == {"error": "ValueError: no idea"}
    assert described["undeclared"]["plan"]["initial_size"] == 1.0
    show_methods(list(described.values()))
    printed = capsys.readouterr().out
    assert "cannot be planned:" in printed
    assert "not declared" in printed


def test_every_option_has_a_range_a_source_and_a_meaning() -> None:
    for described in describe_methods():
        for found in described["options"]:
            assert found["source"] in SOURCES, (described["name"], found["name"])
            assert found["range"], (described["name"], found["name"])
            assert found["help"], (described["name"], found["name"])


def test_the_command_prints_the_same_as_json_and_as_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    # Cells that are folded cannot be found.
    monkeypatch.setattr(terminal, "PLAIN_WIDTH", 5000)
    shown = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)["methods"]
    assert shown == describe_methods()
    lorpa = shown[names().index("lorpa")]
    assert (lorpa["year"], lorpa["kind"], lorpa["actions"]) == (2024, "strategy", ["cut ranks"])
    assert lorpa["options"][1] == {
        "name": "dense_share",
        "default": 0.2,
        "range": "in (0, 1)",
        "source": "authors' code",
        "help": "share of the run before the cut",
    }
    printed = " ".join(CliRunner().invoke(app, ["methods"]).stdout.split())
    for method in shown:
        control = method["source"].startswith("control")
        assert (method["year"] is None) == (control or method["name"] in YEARLESS), method["name"]
        texts = [method["name"], str(method["year"] or "–"), method["source"], method["prunes"], method["summary"]]
        texts += [*method["description"].split("\n"), *method["signals"], *method["decides"], *method["actions"]]
        texts += [method["exemption"] or "met", *(p["name"] for p in method["plan"]["phases"])]
        texts += [str(o[part]) for o in method["options"] for part in ("name", "default", "range", "source", "help")]
        for text in texts:
            assert " ".join(text.split()) in printed, (method["name"], text)
    for source, meaning in SOURCES.items():
        assert f"{source}: {meaning}" in printed
