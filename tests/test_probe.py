"""The table of methods says what each of them was seen to do."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from peftprune import methods
from peftprune.cli import console as tables
from peftprune.cli import probe
from peftprune.cli.app import app
from peftprune.methods import describe as overview
from peftprune.methods.registry import load, register
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.plan import PruningPlan

SEEN: dict[str, dict[str, Any]] = {
    "lora": {"when": "never", "changes": [], "start": "even", "peak": 1.0, "trained": 1.0},
    "lorpa": {"when": "once, at 20%", "changes": ["ranks"], "peak": 4.0, "phases": ["dense", "pruned"]},
    "prilora": {"changes": ["entries"], "start": "uneven", "last": 1.0},
    "lora-drop": {"changes": ["fresh start", "sharing"], "events": 1},
    "delete": {"changes": ["fresh start", "sites"], "events": 1},
    "lora-restart": {"when": "never", "phases": ["first", "second"]},
    "eva": {"when": "before training", "changes": ["fresh start", "redistribution", "values"]},
    "rslora": {"when": "never", "trained": 1.0},
    "lora-fa": {"when": "never", "trained": 0.5},
    "dora": {"when": "never", "start": "even", "budget": "met"},
    "head-only": {"start": "none", "peak": 0.0},
    "full": {"start": "none", "trained": 1.0},
}


YEARLESS = {"full", "random-rank"}
"""Methods that no paper introduced."""


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, Any]]:
    """All methods of ours, watched once."""
    state = torch.get_rng_state()
    found = probe.capabilities(methods.names())
    assert torch.equal(torch.get_rng_state(), state), "watching draws nothing from the global stream"
    return found


@pytest.fixture
def remembered(seen: dict[str, dict[str, Any]], alone: None) -> None:
    """What was seen lies in this test's cache, as after an earlier call."""
    file = probe.cache_folder() / "capabilities.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"key": probe._key(), "methods": seen}))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(methods, "_REGISTERED", {})
    monkeypatch.setenv("PEFTPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", SEEN)
def test_what_a_method_does_is_seen(name: str, seen: dict[str, dict[str, Any]]) -> None:
    assert {field: seen[name].get(field) for field in SEEN[name]} == SEEN[name]


def test_every_method_can_be_watched_and_meets_its_budget(seen: dict[str, dict[str, Any]]) -> None:
    assert list(seen) == methods.names()
    for name, found in seen.items():
        assert "error" not in found, (name, found)
        assert found["budget"] == (getattr(load(name), "exemption", None) or "met"), name
        assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("name", ["random-rank", "lora-drop", "vera"])
def test_watching_twice_shows_the_same(name: str, seen: dict[str, dict[str, Any]]) -> None:
    torch.rand(3)
    assert probe.observe(name) == seen[name]


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that were watched; watching is replaced by noting the name."""
    watched: list[str] = []

    def observe(name: str) -> dict[str, Any]:
        watched.append(name)
        return {"name": name}

    monkeypatch.setattr(probe, "observe", observe)
    return watched


def test_methods_are_watched_once_per_version(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.capabilities(["lora", "lorpa"]) == {"lora": {"name": "lora"}, "lorpa": {"name": "lorpa"}}
    assert probe.capabilities(["lorpa", "delete"]) == {"lorpa": {"name": "lorpa"}, "delete": {"name": "delete"}}
    assert counted == ["lora", "lorpa", "delete"]
    monkeypatch.setattr(probe, "_key", lambda: "a new version")
    probe.capabilities(["lora"])
    assert counted[3:] == ["lora"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}'])
def test_a_cache_that_cannot_be_read_is_written_anew(content: str, counted: list[str], tmp_path: Path) -> None:
    file = tmp_path / "cache" / "capabilities.json"
    file.parent.mkdir()
    file.write_text(content)
    assert probe.capabilities(["lora"]) == {"lora": {"name": "lora"}}
    assert json.loads(file.read_text())["methods"] == {"lora": {"name": "lora"}}


def test_a_cache_that_cannot_be_written_is_done_without(counted: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert probe.capabilities(["lora"]) == {"lora": {"name": "lora"}}


# --- methods of others ------------------------------------------------------------------------------------------------


class Broken(RankPruningStrategy):
    """Fails."""

    name = "broken"

    def decide(self, view: Any) -> PruningPlan:
        raise ValueError("no idea")


class Greedy(RankPruningStrategy):
    """Spends more than there is."""

    name = "greedy"

    def decide(self, view: Any) -> PruningPlan:
        return PruningPlan(grow=dict.fromkeys(view.sites, 1) if view.step == 3 else {})


def test_a_method_that_fails_leaves_the_table_standing(remembered: None, capsys: pytest.CaptureFixture[str]) -> None:
    from peftprune.cli.console import show_methods

    register(Broken)
    register(Greedy)
    described = {m["name"]: m for m in overview.describe_methods()}
    assert described["broken"]["observed"] == {"error": "ValueError: no idea"}
    assert "above" in described["greedy"]["observed"]["error"]
    show_methods(list(described.values()))
    assert "not seen:" in capsys.readouterr().out


def test_methods_of_others_are_watched_every_time(counted: list[str]) -> None:
    register(Broken)
    for _ in range(2):
        probe.capabilities(["lora", "broken"])
    assert counted == ["lora", "broken", "broken"]


# --- the table --------------------------------------------------------------------------------------------------------


def test_claims_are_word_for_word_and_carry_their_marks() -> None:
    for described in map(overview.describe_method, methods.names()):
        text = " ".join((inspect.getdoc(load(described["name"])) or "").split())
        for claim in described["claims"]:
            assert claim["text"] in text, described["name"]
            assert set(claim["marks"]) <= {"paper", "authors' code", "secondary summary", "convention of ours"}
    assert all(overview.describe_method(name)["claims"] for name in methods.names())
    shared = next(c for c in overview.describe_method("lora-drop")["claims"] if "share one LoRA" in c["text"])
    assert shared["marks"] == ["paper", "convention of ours"]


def test_every_option_says_where_its_default_comes_from() -> None:
    for described in map(overview.describe_method, methods.names()):
        for found in described["options"]:
            assert found["mark"], (described["name"], found["name"])
            assert found["help"], (described["name"], found["name"])


def test_the_command_prints_the_same_as_json_and_as_tables(
    remembered: None, seen: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Cells that are folded cannot be found.
    monkeypatch.setattr(tables, "_PLAIN_WIDTH", 5000)
    shown = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)["methods"]
    names = [m["name"] for m in shown]
    assert names == methods.names()
    assert {m["name"]: m["observed"] for m in shown} == seen
    lorpa = shown[names.index("lorpa")]
    assert (lorpa["year"], lorpa["kind"], lorpa["observed"]["changes"]) == (2024, "strategy", ["ranks"])
    assert lorpa["options"][0] == {
        "name": "initial_rank",
        "default": 256,
        "mark": "authors' code",
        "help": "rank of the dense phase",
    }
    printed = " ".join(CliRunner().invoke(app, ["methods"]).stdout.split())
    for method in shown:
        assert (method["year"] is None) == ("ours" in method["source"] or method["name"] in YEARLESS), method["name"]
        said = [method["name"], str(method["year"] or "–"), method["source"], method["prunes"], method["summary"]]
        said += [*method["signals"], method["observed"]["when"], method["observed"]["budget"]]
        said += [cell for claim in method["claims"] for cell in (claim["text"], *claim["marks"])]
        said += [str(o[part]) for o in method["options"] for part in ("name", "default", "mark", "help")]
        for text in said:
            assert " ".join(text.split()) in printed, (method["name"], text)
    assert "once, at 20%" in printed
    assert "convention of ours" in printed
