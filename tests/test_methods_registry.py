"""How methods are named, found, given options, and refused."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, field, fields
from types import SimpleNamespace

import pytest
import torch

from peftprune.errors import UsageError
from peftprune.methods import registry
from peftprune.methods.lora import LoRA
from peftprune.methods.lorpa import LoRPA
from peftprune.methods.prilora import PRILoRA
from peftprune.methods.registry import MethodSpec, load, names, register
from peftprune.methods.request import parse
from peftprune.strategy import lazy
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.options import Options, option, range_in_words

BUILT_IN = ["lora", "lorpa", "prilora", "lora-drop", "lora-restart", "random-rank", "delete"]


@dataclass(frozen=True)
class MineConfig:
    size: int = option(3, "convention", "a size")


class Mine(RankPruningStrategy):
    """A user's own method."""

    name = "mine"
    Config = MineConfig


def refused(call, *parts):
    """The error of a call that must fail; its message holds all parts and ends with a cure."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    assert len(message.partition(". ")[2]) > 5, f"no cure in {message!r}"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(registry, "REGISTERED", {})
    monkeypatch.setattr(registry, "entry_points", lambda group: [])


# --- the language --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("lora", [("lora", LoRA, {})]),
        (" lora , lorpa ,", [("lora", LoRA, {}), ("lorpa", LoRPA, {})]),
        ("lorpa(initial_rank=64)", [("lorpa", LoRPA, {"initial_rank": 64})]),
        (
            "lorpa:r64(initial_rank=64, form='outer'),lorpa",
            [("lorpa:r64", LoRPA, {"initial_rank": 64, "form": "outer"}), ("lorpa", LoRPA, {})],
        ),
        ("lorpa:a.b+c-d_1", [("lorpa:a.b+c-d_1", LoRPA, {})]),
        ("prilora(pattern='2:4')", [("prilora", PRILoRA, {"pattern": "2:4"})]),
        ("lorpa()", [("lorpa", LoRPA, {})]),
        (["lora", "lorpa,prilora"], [("lora", LoRA, {}), ("lorpa", LoRPA, {}), ("prilora", PRILoRA, {})]),
        ("lorpa(\n  initial_rank=64,\n  rewind=True,\n)", [("lorpa", LoRPA, {"initial_rank": 64, "rewind": True})]),
        ([Mine], [("mine", Mine, {})]),
        ("peft:ia3", [("peft:ia3", load("peft:ia3"), {})]),
        ("peft:pissa:r4(r=4)", [("peft:pissa:r4", load("peft:pissa"), {"r": 4})]),
    ],
)
def test_parse(request_, expected):
    assert [(s.label, s.cls, dict(s.options)) for s in parse(request_)] == expected


def test_options_reach_the_method():
    (spec,) = parse("lorpa:short(initial_rank=64, dense_share=0.5)")
    strategy = spec.build()
    assert (strategy.config.initial_rank, strategy.config.dense_share) == (64, 0.5)


def test_objects_keep_their_configuration_and_arms_share_no_state():
    given = Mine(size=7)
    (spec,) = parse([given])
    first, second = spec.build(), spec.build()
    assert spec.label == "mine"
    assert first.config == second.config == given.config
    assert len({id(first), id(second), id(given)}) == 3


def test_a_parsed_method_may_be_parsed_again():
    spec = MethodSpec("lorpa:x", LoRPA, {"initial_rank": 4})
    assert parse([spec]) == [spec]


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        ("", ("methods: ''", "is empty", "lora,lorpa")),
        (" , ", ("methods", "is empty")),
        ([], ("methods: []", "is empty")),
        ("lora,lorpa,lora", ("methods: 'lora' occurs twice", "lora:mine(")),
        ("lorpa:a,lorpa:a(initial_rank=4)", ("'lorpa:a' occurs twice", "lorpa:mine(")),
        ("lorpaa", ("method: 'lorpaa' is unknown", "Did you mean 'lorpa'?", "Known methods: lora, lorpa")),
        ("zzz", ("method: 'zzz' is unknown", "Known methods: lora")),
        ("peft", ("method: 'peft:' is not a method of PEFT's", "prefix-tuning, prompt-tuning")),
        ("peft:prefx-tuning", ("'peft:prefx-tuning'", "Did you mean 'prefix-tuning'?")),
        ("peft:adalora", ("'peft:adalora' decides on ranks in training", "Use adalora-peft")),
        ("peft:loha(module_droput=0.1)", ("peft:loha option: 'module_droput'", "Did you mean 'module_dropout'?")),
        ("peft:loha(r='four')", ("peft:loha.r: 'four' is not a whole number",)),
        ("peft:lora(init_lora_weights='eva')", ("init_lora_weights: 'eva' needs data", "Use eva")),
        ("peft:ia3,peft:ia3", ("'peft:ia3' occurs twice", "peft:ia3:mine(")),
        ("LORPA", ("method: 'LORPA' is unknown",)),
        ("lorpa:", ("malformed label", "after the colon")),
        ("lorpa:a b", ("malformed label",)),
        ("lorpa:a/b", ("malformed label",)),
        ("lorpa(64)", ("'lorpa(64)'", "not name=value", "lorpa(initial_rank=64")),
        ("lorpa(initial_rank=)", ("not name=value",)),
        ("lorpa(initial_rank=64", ("'lorpa(initial_rank=64'", "Write")),
        ("lorpa(initial_rank=rank)", ("not name=value",)),
        ("lorpa(initial_rank=__import__('os'))", ("not name=value",)),
        ("lorpa(initial_rank=1, initial_rank=2)", ("not name=value",)),
        ("lorpa(initial_rank=64)(form='outer')", ("lorpa(initial_rank=64)(form='outer')",)),
        ("lorpa(**{'initial_rank': 64})", ("not name=value",)),
        ("lorpa(inital_rank=64)", ("lorpa option: 'inital_rank' does not exist", "Did you mean 'initial_rank'?")),
        ("lorpa(zzz=64)", ("'zzz' does not exist", "Options: initial_rank, dense_share")),
        ("dora(rank=8)", ("dora option: 'rank' does not exist", "Options: none")),
        ("nowhere.py:Mine", ("nowhere.py", "is not a file", "path/to/file.py:ClassName")),
        ([3], ("methods: 3 is not a method",)),
        ([int], ("is not a method",)),
    ],
)
def test_malformed_requests_are_refused_with_a_cure(request_, parts):
    refused(lambda: parse(request_), *parts)


def test_a_config_and_options_together_are_refused():
    refused(lambda: Mine(MineConfig(4), size=5), "mine options", "came together with a config", "Give one")


def test_missing_options_are_named():
    @dataclass(frozen=True)
    class NeedsConfig:
        size: int

    class Needs(RankPruningStrategy):
        name = "needs"
        Config = NeedsConfig

    refused(lambda: parse([Needs]), "needs options: []", "lack ['size']", "Give size=")


# --- where methods come from ---------------------------------------------------------------------------------------


def test_built_in_methods_load_under_their_names():
    assert set(BUILT_IN) <= set(names())
    for name in names():
        assert load(name).name == name
        assert load(name).__doc__


def test_para_is_svd_under_a_label_of_its_own():
    (spec,) = parse("para(initial_rank=16)")
    assert (spec.label, spec.build().name, spec.build().config.initial_rank) == ("para", "svd", 16)


def test_register_makes_a_class_known():
    assert register(Mine) is Mine
    assert register(Mine) is Mine
    assert "mine" in names()
    (spec,) = parse("mine:big(size=9)")
    assert (spec.label, spec.cls, spec.build().config.size) == ("mine:big", Mine, 9)


@pytest.mark.parametrize("name", ["lora", "mine"])
def test_a_name_cannot_be_taken_twice(name):
    register(Mine)
    other = type("Other", (RankPruningStrategy,), {"name": name})
    refused(lambda: register(other), f"name: '{name}' is taken", "Choose another")


def test_entry_points_are_found_and_loaded_only_when_asked_for(monkeypatch):
    loaded = []
    plugin = SimpleNamespace(name="mine", load=lambda: loaded.append(1) or Mine)
    groups = {"peftprune.methods": [plugin]}
    monkeypatch.setattr(registry, "entry_points", lambda group: groups[group])
    assert "mine" in names()
    parse("lora")
    assert not loaded
    assert parse("mine")[0].cls is Mine
    refused(lambda: parse("minee"), "Did you mean 'mine'?")


SOURCE = """
from peftprune.strategy import RankPruningStrategy

class Own(RankPruningStrategy):
    name = "own"

class NoMethod:
    pass
"""

WITH_CONFIG = """
from __future__ import annotations

from dataclasses import dataclass, field, fields
from peftprune.strategy import RankPruningStrategy

@dataclass(frozen=True)
class OwnConfig:
    size: int = 3

class Own(RankPruningStrategy):
    name = "own"
    Config = OwnConfig
"""


def test_a_class_from_a_file(tmp_path):
    file = tmp_path / "own method.py"
    file.write_text(SOURCE)
    (spec,) = parse(f"{file}:Own")
    assert (spec.label, spec.cls.__name__) == ("own", "Own")
    assert spec.build().name == "own"
    refused(lambda: parse(f"{file}:Owm"), "'Owm' is not a class in", "Classes there: Own, NoMethod")
    refused(lambda: parse(f"{file}:NoMethod"), "is not a method")


def test_a_class_from_a_file_may_have_options(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(WITH_CONFIG)
    (spec,) = parse(f"{file}:Own(size=5)")
    assert spec.build().config.size == 5
    refused(lambda: parse(f"{file}:Own(siz=5)"), "own option: 'siz'", "Did you mean 'size'?")


# --- options out of range ------------------------------------------------------------------------------------------

BAD_OPTIONS = [
    ("lorpa", "initial_rank", [0, -1, 1.5, "64", None, True]),
    ("lorpa", "dense_share", [0, 1, 1.5, -0.1, float("nan"), "0.2", None]),
    ("lorpa", "form", ["inner", "", None, 1]),
    ("lorpa", "scaling", ["other", None, 2.0]),
    ("lorpa", "rewind", ["yes", 1, None]),
    ("random-rank", "initial_rank", [0]),
    ("lora-restart", "dense_share", [0, 1, -1, float("nan"), "0.2"]),
    ("prilora", "start_rank", [0, -4, 2.5, "4", True]),
    ("prilora", "final_rank", [0, 2.5, "4"]),
    ("prilora", "sparsity", [-0.1, 1, 1.5, float("nan"), "0.5"]),
    ("prilora", "prune_every", [0, 1.5, "40"]),
    ("prilora", "beta", [-0.1, 1, float("nan"), "0.9"]),
    ("prilora", "pattern", ["column", "4:2", "4:4", "0:4", "2:", ":4", "a:b", "2:4:8", 4, None]),
    ("prilora", "moments", ["drop", None, 0]),
    ("lora-drop", "sample", [0, 1, -0.1, float("nan"), "0.1"]),
    ("lora-drop", "probe_passes", [0, -1, float("nan"), float("inf"), "3"]),
    ("lora-drop", "threshold", [0, 1.1, -1, float("nan"), "0.9"]),
    ("lora-drop", "normalise", ["site", None, 1]),
    ("delete", "threshold", [0]),
]


@pytest.mark.parametrize(
    ("method", "field", "value"), [(m, f, v) for m, f, values in BAD_OPTIONS for v in values], ids=str
)
def test_options_out_of_range_name_field_value_and_cure(method, field, value):
    with pytest.raises(UsageError, match=rf"^[\w-]+\.{field}: {re.escape(repr(value))} .+\. (Give|Use) .+"):
        load(method)(**{field: value})


GOOD_OPTIONS = [
    ("lorpa", {"initial_rank": 1, "dense_share": 0.999, "form": "outer", "scaling": "rescale", "rewind": True}),
    ("lora-restart", {"dense_share": 0.001}),
    ("prilora", {"start_rank": 1, "final_rank": 1, "sparsity": 0, "prune_every": 1, "beta": 0, "pattern": "matrix"}),
    ("prilora", {"pattern": "2:4", "moments": "zero", "sparsity": 0.99}),
    ("lora-drop", {"sample": 0.999, "probe_passes": 0.5, "threshold": 1, "normalise": "kind"}),
]


@pytest.mark.parametrize(("method", "options"), GOOD_OPTIONS)
def test_options_at_the_edge_of_their_range_are_taken(method, options):
    config = load(method)(**options).config
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_config_checks_itself(name):
    config = load(name).Config
    assert config() == config(**vars(config()))
    for option_ in fields(config):
        with pytest.raises(UsageError, match=rf"^\w+\.{option_.name}: \[\] "):
            config(**{option_.name: []})


@dataclass(frozen=True)
class RangedConfig(Options):
    least: int = option(1, ge=1)
    above: float = option(0.5, gt=0)
    most: float = option(0.5, le=1)
    below: float = option(0.5, "paper", "a share", ge=0, lt=1)
    maybe: int | None = option(None, "authors' code", ge=2)
    kind: str = option("a", choices=("a", "b"))
    plain: float = 2.0
    other: list[int] = field(default_factory=list)


class Ranged(RankPruningStrategy):
    """A method with every form of range."""

    name = "ranged"
    Config = RangedConfig


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"least": 0}, "ranged.least: 0 is not at least 1. Give 1, for example"),
        ({"least": 1.5}, "ranged.least: 1.5 is not a whole number. Give 1, for example"),
        ({"least": True}, "ranged.least: True is not a whole number. Give 1, for example"),
        ({"above": 0}, "ranged.above: 0 is not above 0. Give 0.5, for example"),
        ({"above": float("inf")}, "ranged.above: inf is not finite. Give 0.5, for example"),
        ({"most": 1.5}, "ranged.most: 1.5 is not at most 1. Give 0.5, for example"),
        ({"below": 1}, "ranged.below: 1 is not in [0, 1). Give 0.5, for example"),
        ({"below": float("nan")}, "ranged.below: nan is not finite. Give 0.5, for example"),
        ({"maybe": 1}, "ranged.maybe: 1 is not at least 2. Give a value at least 2, or None"),
        ({"kind": "c"}, "ranged.kind: 'c' is unknown. Use 'a' or 'b'"),
        ({"plain": "2"}, "ranged.plain: '2' is not a number. Give 2.0, for example"),
    ],
)
def test_values_out_of_range_name_field_value_problem_and_cure(given, message):
    with pytest.raises(UsageError, match=rf"^{re.escape(message)}$"):
        Ranged(**given)


def test_values_within_their_range_are_taken():
    given = {"least": 9, "above": 3, "most": -1, "below": 0, "maybe": None, "plain": float("inf"), "other": [1]}
    assert vars(Ranged(**given).config) == given | {"kind": "a"}


def test_ranges_in_words():
    words = {f.name: range_in_words(f) for f in fields(RangedConfig)}
    assert words == {
        "least": "at least 1",
        "above": "above 0",
        "most": "at most 1",
        "below": "in [0, 1)",
        "maybe": "at least 2, or None",
        "kind": "'a' or 'b'",
        "plain": "a number",
        "other": "list[int]",
    }


def test_an_option_keeps_its_source():
    made = option(3, "convention", "a size")
    assert (made.default, made.metadata["source"], made.metadata["help"]) == (3, "convention", "a size")


def test_a_method_sent_to_another_process_takes_torch_along() -> None:
    assert pickle.loads(pickle.dumps([lazy.torch, lazy.nn])) == [torch, torch.nn]
