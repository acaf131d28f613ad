"""The table of methods says what each of them was seen to do."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from peftprune import methods, overview, probe
from peftprune.cli import app
from peftprune.methods import load, register
from peftprune.strategy import PruningPlan, RankPruningStrategy

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


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(methods, "_REGISTERED", {})
    monkeypatch.setenv("PEFTPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", SEEN)
def test_what_a_method_does_is_seen(name: str) -> None:
    found = probe.observe(name)
    assert {field: found.get(field) for field in SEEN[name]} == SEEN[name]


def test_every_method_can_be_watched_and_meets_its_budget() -> None:
    state = torch.get_rng_state()
    for name, found in probe.capabilities(methods.names()).items():
        assert "error" not in found, (name, found)
        assert found["budget"] == (getattr(load(name), "exemption", None) or "met"), name
        json.dumps(found)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["random-rank", "lora-drop", "vera"])
def test_watching_twice_shows_the_same(name: str) -> None:
    torch.rand(3)
    assert probe.observe(name) == probe.observe(name)


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


def test_a_method_that_fails_leaves_the_table_standing(capsys: pytest.CaptureFixture[str]) -> None:
    from peftprune.tables import show_methods

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
    for described in overview.describe_methods():
        text = " ".join((inspect.getdoc(load(described["name"])) or "").split())
        for claim in described["claims"]:
            assert claim["text"] in text, described["name"]
            assert set(claim["marks"]) <= {"paper", "authors' code", "secondary summary", "convention of ours"}
    drop = next(d for d in overview.describe_methods() if d["name"] == "lora-drop")
    shared = next(c for c in drop["claims"] if "share one LoRA" in c["text"])
    assert shared["marks"] == ["paper", "convention of ours"]


def test_every_option_says_where_its_default_comes_from() -> None:
    for described in overview.describe_methods():
        for found in described["options"]:
            assert found["mark"], (described["name"], found["name"])
            assert found["help"], (described["name"], found["name"])


def test_the_command_prints_the_same_as_json_and_as_tables() -> None:
    shown = json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)["methods"]
    names = [m["name"] for m in shown]
    assert names == methods.names()
    lorpa = shown[names.index("lorpa")]
    assert (lorpa["year"], lorpa["kind"], lorpa["observed"]["changes"]) == (2024, "strategy", ["ranks"])
    assert lorpa["options"][0] == {
        "name": "initial_rank",
        "default": 256,
        "mark": "authors' code",
        "help": "rank of the dense phase",
    }
    printed = " ".join(CliRunner().invoke(app, ["methods"]).stdout.split())
    assert all(name in printed for name in names)
    assert "once, at 20%" in printed
    assert "convention of ours" in printed
