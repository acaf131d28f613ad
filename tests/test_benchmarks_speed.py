"""The speed benchmarks: what they run, that they measure what they say, and their arithmetic and tables."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import TrainerCallback
from typer.testing import CliRunner

from benchmarks.speed import plain_script
from benchmarks.speed.after_cut import after_cut
from benchmarks.speed.arms import Bench, Shadow, plain
from benchmarks.speed.commands import timed
from benchmarks.speed.growth import growth
from benchmarks.speed.limit import limit, shares
from benchmarks.speed.measure import compared, described, difference
from benchmarks.speed.overhead import overhead
from benchmarks.speed.parallel import parallel
from benchmarks.speed.parts import PARTS
from benchmarks.speed.plain import plain as against_script
from benchmarks.speed.plain import ratios
from benchmarks.speed.record import place, write
from benchmarks.speed.request import Request
from benchmarks.speed.start import start
from benchmarks.speed.tables import _PARTS, section, sections
from benchmarks.speed.turns import one_round, started
from peftprune.adapters import surgery
from tests.helpers import texts

# What the libraries say of a script that leaves everything as they have it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]
SMALL = {"batch_size": 8, "max_length": 32, "dtype": "float32"}


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MRPC and RTE in the official layout: is there a positive word in the first text?"""
    folder = tmp_path_factory.mktemp("glue")
    for split, n, seed in (("train", 70, 1), ("dev", 20, 2)):
        found, labels = texts(n, seed)
        pairs = {"#1 String": found, "#2 String": ["cat on dog"] * n}
        mrpc = pd.DataFrame({"Quality": labels, "#1 ID": range(n), "#2 ID": range(n), **pairs})
        words = ["entailment" if label else "not_entailment" for label in labels]
        rte = pd.DataFrame({"index": range(n), "sentence1": found, "sentence2": ["cat"] * n, "label": words})
        for name, frame in (("MRPC", mrpc), ("RTE", rte)):
            (folder / name).mkdir(exist_ok=True)
            frame.to_csv(folder / name / f"{split}.tsv", sep="\t", index=False, encoding="utf-8-sig")
    return folder


@pytest.fixture
def bench(glue: Path, tiny_bert: Path, tmp_path: Path) -> Bench:
    return Bench("mrpc", glue, "attention", tmp_path, tiny_bert, settings=SMALL)


# --- the plain script -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "task"), [("lora", "rte"), ("adalora", "mrpc")])
def test_the_plain_script_trains(
    glue: Path, tiny_bert: Path, method: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    adapt = plain_script.get_peft_model
    monkeypatch.setattr(plain_script, "get_peft_model", lambda *given: made.append(adapt(*given)) or made[0])
    options: dict[str, Any] = {"max_train_samples": None, "max_eval_samples": 10, "epochs": 4.0, "seed": 0}
    options |= {
        "max_steps": -1,
        "task": task,
        "data_dir": glue,
        "model": str(tiny_bert),
        "method": method,
        "targets": "attention",
    }
    found = plain_script.main(Namespace(**options))
    assert found["steps"] == 12
    assert found["dtype"] == "float32"
    assert found["first_step_seconds"] > found["train_seconds"] / 12
    assert 10 * found["accuracy"] == pytest.approx(round(10 * found["accuracy"]))
    trained = {name: p for name, p in made[0].named_parameters() if "lora_B" in name}
    assert len(trained) == 4
    assert all(p.any() for p in trained.values())
    if method == "adalora":
        kept = made[0].peft_config["default"].rank_pattern
        assert sum(sum(pattern) for pattern in kept.values()) == 4 * 8
        assert {len(pattern) for pattern in kept.values()} == {12}


def test_the_plain_script_adapts_the_same_layers_as_a_study(bench: Bench, tiny_bert: Path, glue: Path) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    for targets in plain_script.TARGETS:
        study = Bench("mrpc", glue, targets, bench.folder, tiny_bert, settings=SMALL)
        model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
        adapted = get_peft_model(model, plain_script.adapter("lora", targets, 10))
        theirs = {n.partition(".lora_")[0].removeprefix("base_model.model.") for n, _ in adapted.named_parameters()}
        ours = {shape.name for shape in study.plan("lora", "rank=8,steps=4").shapes}
        assert {name for name in theirs if "encoder" in name and name in ours} == ours
        built = study.build("lora", study.plan("lora", "rank=8,steps=4"))
        count = sum(p.numel() for p in built.trainer.model.parameters() if p.requires_grad)
        assert count == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="nothing works"):
        timed(["-c", "raise SystemExit('nothing works')"])


# --- steps in turn ----------------------------------------------------------------------------------------------------


class Order(TrainerCallback):
    """Notes whose step begins, and which."""

    def __init__(self, name: str, seen: list[tuple[str, int]]) -> None:
        self.name, self.seen = name, seen

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((self.name, state.global_step))


def test_trainers_take_the_same_step_on_the_same_batch_one_after_another(bench: Bench) -> None:
    seen: list[tuple[str, int]] = []
    batches: dict[str, list[Any]] = {}
    arms = [bench.build(name, bench.plan("lora", "rank=2,steps=12")) for name in "abc"]
    for arm in arms:
        arm.trainer.add_callback(Order(arm.turn.name, seen))
        held = batches.setdefault(arm.turn.name, [])
        arm.trainer.model.register_forward_pre_hook(
            lambda module, args, kwargs, held=held: held.append(kwargs["input_ids"].clone()), with_kwargs=True
        )
    rng = random.Random(1)
    turns = [arm.turn for arm in arms]
    with started(turns):
        rounds = [one_round(turns, rng) for _ in range(8)]
    for k in range(8):
        assert sorted(seen[3 * k : 3 * k + 3]) == [("a", k), ("b", k), ("c", k)]
        assert torch.equal(batches["a"][k], batches["b"][k])
        assert torch.equal(batches["a"][k], batches["c"][k])
    assert len({tuple(name for name, _ in seen[3 * k : 3 * k + 3]) for k in range(8)}) > 1, "always the same order"
    assert len(seen) == 24, "no steps after the last round"
    assert all(seconds > 0 for found in rounds for seconds in found.values())


def test_steps_in_turn_are_those_of_a_run_on_its_own(bench: Bench) -> None:
    plan = bench.plan("lora", "rank=2,steps=6")
    alone, turned, other = (bench.build(name, plan) for name in ("alone", "turned", "other"))
    alone.trainer.callback_handler.callbacks.pop(0)
    alone.trainer.run()
    with started([turned.turn, other.turn]):
        for _ in range(6):
            one_round([turned.turn, other.turn], random.Random(0))
        assert turned.turn.finished
        with pytest.raises(RuntimeError, match="no steps left"):
            turned.turn.step()
    for a, b in zip(alone.trainer.model.parameters(), turned.trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_a_trainer_raises_ends_the_measurement(bench: Bench) -> None:
    class Broken(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise ValueError("broken at step 1")

    arm = bench.build("a", bench.plan("lora", "rank=2,steps=6"))
    arm.trainer.add_callback(Broken())
    with started([arm.turn]), pytest.raises(ValueError, match="broken at step 1"):
        arm.turn.step()


def test_a_shadow_has_the_shape_that_its_arm_has(bench: Bench) -> None:
    plan = bench.plan("lorpa(initial_rank=16)", "rank=2,steps=12")
    arm, beside = bench.build("lorpa", plan), bench.build("lora", plain(plan))
    assert beside.sites.ranks == arm.sites.ranks
    shadow, rng, turns = Shadow(arm, beside), random.Random(0), [arm.turn, beside.turn]
    ranks = []
    with started(turns):
        for _ in range(8):
            one_round(turns, rng)
            shadow.follow()
            ranks.append(sum(arm.sites.ranks.values()))
            assert surgery.structure(beside.sites) == surgery.structure(arm.sites)
        state = beside.optimizer.state
        shapes = {tuple(state[t]["exp_avg"].shape) for s in beside.sites.values() for t in (s.live().A, s.live().B)}
    assert ranks[0] == 16 * 4
    assert ranks[-1] == 2 * 4
    assert shapes == {(2, 32), (32, 2)}


# --- the parts --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_parts_in_one_process_find_something_everywhere(glue: Path, tiny_bert: Path, tmp_path: Path) -> None:
    request = Request(glue, quick=True, model=tiny_bert)
    methods = ["lora-drop(sample=0.5,probe_passes=1.0)", "vera(rank=16)", "adalora", "adalora-peft"]
    costs = overhead(request, methods)
    assert [row["method"] for row in costs["rows"]] == methods
    assert costs["rows"][0]["events"] > 0
    assert costs["versus"][0]["against"] == "adalora-peft"
    cut = after_cut(request)
    assert [row["targets"] for row in cut["rows"]] == ["attention", "all-linear"]
    assert cut["rows"][0]["lorpa_bytes"] == cut["rows"][0]["lora_bytes"]
    near = limit(request)
    assert all(row["share_of_limit"] > 0 for row in near["steps"])
    for profile in near["profiles"].values():
        assert sum(profile.values()) == pytest.approx(1)
        assert profile["matrix products"] > 0
        assert profile["dropout masks"] > 0
        assert profile["optimizer"] > 0
    for part, found in (("overhead", costs), ("after-cut", cut), ("limit", near)):
        path = write(tmp_path, part, part, found.pop("settings"), found.pop("threads"), found)
        stored = json.loads(path.read_text())
        assert {"device", "cores", "threads", "dtype", "versions", "settings"} <= stored.keys()
    text = sections(tmp_path)
    assert text.index("machine's limit") < text.index("decisions and signals") < text.index("after its cut")


@pytest.mark.slow
def test_the_parts_that_run_commands(glue: Path, tiny_bert: Path, tmp_path: Path) -> None:
    request = Request(glue, quick=True, model=tiny_bert)
    side = parallel(request)
    assert side["identical"] == dict.fromkeys(side["identical"], True)
    assert "2x1" in side["identical"]
    sizes = growth(request)
    assert {row["what"] for row in sizes["rows"]} == {"rank", "adapted layers", "blocks", "arms of a study"}
    against = against_script(request, "rte", "all-linear", "adalora", 2)
    assert len(against["study"]["accuracy"]["scores"]) == len(against["script"]["accuracy"]["scores"]) == 2
    assert against["script"]["dtype"] == "float32"
    assert against["ratio"] == pytest.approx(against["study"]["seconds"] / sum(against["script"]["seconds"]))
    begun = start(request)
    assert sum(begun["parts"].values()) == pytest.approx(begun["start"]["median"])
    assert next(iter(begun["parts"])) == "interpreter and imports"
    for part, kind, found in (
        ("start", "start", begun),
        ("parallel", "parallel", side),
        ("growth", "growth", sizes),
        ("plain-rte", "plain", against),
    ):
        write(tmp_path, part, kind, found.pop("settings"), found.pop("threads"), found)
    assert sections(tmp_path).count("### ") == 4


def test_the_command_line_names_the_parts(tmp_path: Path) -> None:
    import typer

    from benchmarks.speed.__main__ import main

    app = typer.Typer()
    app.command()(main)
    said = CliRunner().invoke(app, ["nothing", "--data-dir", str(tmp_path)])
    assert said.exit_code == 2
    assert "after-cut" in said.output
    absent = CliRunner().invoke(app, ["limit", "--data-dir", str(tmp_path / "absent")])
    assert absent.exit_code == 2
    for part in PARTS:
        place(tmp_path, part).write_text("{}")
    there = CliRunner().invoke(app, ["all", "--missing", "--data-dir", str(tmp_path), "--out", str(tmp_path)])
    assert there.exit_code == 0, "nothing is missing"


# --- arithmetic and tables --------------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round() -> None:
    found = compared([2.0, 3.0, 8.0], [1.0, 2.0, 2.0])
    assert found["median"] == 2.0
    assert found["total"] == 13 / 5
    assert found["low"] == 1.5
    assert found["high"] == 4.0
    assert compared([1.1] * 5, [1.0] * 5)["low"] == pytest.approx(1.1)
    for wrong in ([], [1.0]):
        with pytest.raises(ValueError, match="cannot be compared"):
            compared(wrong, [1.0, 2.0] if wrong else [])


def test_the_difference_of_means_has_welchs_interval() -> None:
    ours, theirs = [0.70, 0.72, 0.74], [0.70, 0.70, 0.73]
    found = difference(ours, theirs)
    assert found["difference"] == pytest.approx(0.01)
    # By hand: standard errors 0.02/√3 and 0.0173/√3, 3.92 degrees of freedom, t = 2.798.
    assert found["low"] == pytest.approx(0.01 - 0.04275, abs=2e-4)
    assert found["high"] == pytest.approx(0.01 + 0.04275, abs=2e-4)
    assert difference([0.7], theirs)["low"] is None
    assert difference([0.7, 0.7], [0.6, 0.6])["high"] == pytest.approx(0.1)
    assert described([0.5])["std"] is None


def test_a_study_is_set_against_all_scripts() -> None:
    scripts = [{"seconds": 10.0, "train_seconds": 8.0}, {"seconds": 14.0, "train_seconds": 12.0}]
    assert ratios(6.0, 4.0, scripts, seeds=2) == {"ratio": 0.25, "training_ratio": 0.2}
    # Fewer scripts than seeds: their median stands for each.
    assert ratios(6.0, 4.0, scripts, seeds=6) == pytest.approx({"ratio": 0.25 / 3, "training_ratio": 0.2 / 3})


def test_a_profile_is_shared_out_without_a_rest() -> None:
    found = shares({"aten::mm": 2.0, "aten::_softmax": 1.0, "dropout masks": 0.5, "aten::view": 0.25}, 8.0)
    assert found["matrix products"] == 0.25
    assert found["softmax"] == 0.125
    assert found["dropout masks"] == 0.0625
    assert found["Python and other"] == 1 - 0.4375


def test_every_part_has_a_heading_and_the_tables_hold_the_numbers() -> None:
    assert set(_PARTS) == set(PARTS)
    around = {"device": "cpu", "cores": 2, "threads": 1, "dtype": "bfloat16"}
    around["versions"] = {"torch": "2", "transformers": "5", "peft": "0"}  # type: ignore[assignment]
    row = {"median": 1.0123, "low": 1.001, "high": 1.02, "total": 1.03, "rounds": 9}
    text = section(
        around
        | {"part": "overhead", "kind": "overhead", "rows": [{"method": "prilora", **row, "events": 2}]}
        | {"versus": [{"method": "adalora", "against": "adalora-peft", **row}]}
    )
    assert "| prilora | 1.012 | 1.001 to 1.020 | 1.030 | 9 | 2 |" in text
    assert "`adalora` 1.012 of `adalora-peft`" in text
    rows = [{"way": "1x2", "options": "--workers 1", **row}, {"way": "2x1", "options": "--workers 2", **row}]
    skipped = {"ray": "ray is not installed"}
    text = section(
        around | {"part": "parallel", "kind": "parallel", "rows": rows, "identical": {"2x1": False}, "skipped": skipped}
    )
    assert "| 2x1 | `--workers 2` | 1.012 | **different** |" in text
    assert "ray: not measured because ray is not installed." in text
    scores = {"mean": 0.7, "std": None, "scores": [0.7]}
    sides = {"study": {"workers": 2, "threads": 1, "dtype": "bfloat16", "accuracy": scores}}
    sides["script"] = {"threads": 2, "dtype": "float32", "accuracy": scores}
    settings = {"task": "mrpc", "targets": "attention", "method": "lora", "seeds": 1, "scripts": 1}
    gap = {"difference": 0.0, "low": None, "high": None}
    found = {"part": "plain-mrpc", "kind": "plain", "settings": settings, **sides, "accuracy": gap}
    text = section(around | found | {"ratio": 0.345, "training_ratio": 0.3})
    assert "| wall-clock, the same number of runs | 0.345 | 1 |" in text
