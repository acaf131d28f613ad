"""What every registered method must keep to. A new method needs one row in `SETTINGS` and nothing else here."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from peftprune.adapters import inject, surgery
from peftprune.analysis.decisions import changes
from peftprune.errors import UsageError
from peftprune.methods.describe import planned
from peftprune.methods.registry import load, names
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.plan import PruningPlan
from peftprune.training.objectives import ArmInputs
from tests.helpers import Arm, CrashError, classification_task, make_arm, same, stored_adapter, stored_logits
from tests.observed import Observed
from tests.reference import masking
from tests.spies import Spy, everything

# Method to options with which everything it does happens within 24 steps of 8 out of 70 examples.
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lorpa": {"initial_rank": 16},
    "prilora": {"prune_every": 5},
    "lora-drop": {"sample": 0.25, "probe_passes": 2.0, "threshold": 0.6},
    "lora-restart": {},
    "random-rank": {"initial_rank": 16},
    "delete": {"sample": 0.25, "probe_passes": 2.0, "threshold": 0.6},
    "adalora": {"every": 3, "warmup": 0.15},
    "adalora-peft": {"every": 3, "warmup": 0.15},
    "dora-dynamic": {"every": 3},
    "increlora": {"warmup": 0.15, "final": 0.3},
    "elalora": {"every": 3, "exchanged": 2, "warmup": 0.15},
    "flexlora": {"every": 3, "exchanged": 2, "warmup": 0.15},
    "reverse": {"sample": 0.25, "probe_passes": 2.0, "threshold": 0.6},
    "top-layers": {},
    "shuffled": {"of": "prilora"},
    "transplant": {"of": "lora-drop(sample=0.25,probe_passes=2.0,threshold=0.2)"},
    "svd": {"initial_rank": 16},
    "squeeze": {"initial_rank": 16, "squeezes": 3},
    "sora": {"initial_rank": 8, "threshold": 0.02, "script_steps": 1},
    "weightlora": {"weight_lr": 1.0},
    "dylora": {"initial_rank": 6},
    "l1ra": {"l1": 0.5, "full_steps": 1, "gate_lr": 0.1, "update_share": 0.21},
    "head-only": {},
    "full": {},
    "bitfit": {},
    "rslora": {},
    "lora-fa": {},
    "dora": {},
    "vera": {"rank": 16},
    "eva": {"sample": 0.25},
    "fisher": {},
    "gora": {"batches": 2},
    "peft:ia3": {},
    "peft:prefix-tuning": {"num_virtual_tokens": 4},
    "peft:p-tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "peft:pissa": {},
}
METHODS = sorted(SETTINGS)
UNEVEN = "params=1501,steps=24"
"""No multiple of what a unit of rank costs, so that sites of one shape differ in rank."""
STRATEGIES = [m for m in METHODS if issubclass(load(m), RankPruningStrategy)]
WALL_CLOCK = {"seconds", "phase_seconds", "evaluation_seconds", "peak_memory_bytes"}

each_method = pytest.mark.parametrize("method", METHODS)
# What concerns plans and views: a baseline has none.
each_strategy = pytest.mark.parametrize("method", STRATEGIES)
each_baseline_slowly = pytest.mark.parametrize(
    "method", [m if m in STRATEGIES else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)


def built(method: str) -> Any:
    """A fresh strategy with its row's options."""
    return load(method)(**SETTINGS[method])


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`finished(method)`: an arm that ran without interruption, once per method, and its result."""

    @cache
    def run(method: str) -> tuple[Arm, dict[str, Any]]:
        arm = make_arm(built(method), tmp_path_factory.mktemp("finished"), tiny_bert, budget=UNEVEN)
        return arm, arm.run()

    return run


def test_every_registered_method_has_a_row() -> None:
    assert set(names()) <= set(SETTINGS), "add a row of settings for the new method"


# --- the budget -------------------------------------------------------------------------------------------------------


def assert_budget_met(arm: Arm, result: dict[str, Any]) -> None:
    """Nothing overspent, and no further unit of rank would fit; counted from the allocation, not by the library."""
    if result["exemption"]:
        assert result["exemption"] == arm.plan.exemption
        return
    shapes = {s.name: s for s in arm.plan.shapes}
    # Some baselines have trained tensors beside A and B, which the budget pays for too.
    others = [t for n, t in stored_adapter(arm.folder).items() if ".lora_" in n and ".lora_A." not in n]
    spent, seen, units = sum(t.numel() for t in others if t.dim() == 1), set(), []
    for row in result["allocation"]:
        if row["rank"] == 0 or row["site"] in seen:
            continue
        seen |= {row["site"], *row["shared_with"]}
        shape = shapes[row["site"]]
        spent += row["rank"] * (shape.d_in + shape.d_out)
        if row["rank"] < min(shape.d_in, shape.d_out):
            units.append(shape.d_in + shape.d_out)
    assert result["ledger"]["final_params"] == result["ledger"]["unique_params"] == spent
    assert 0 <= result["budget"]["params"] - spent < min(units, default=float("inf"))


def assert_all_is_spent(arm: Arm, result: dict[str, Any]) -> None:
    """The parameters that are allowed, and the steps."""
    assert_budget_met(arm, result)
    assert result["ledger"]["steps"] == 24
    assert result["ledger"]["peak_params"] >= result["ledger"]["final_params"]


@each_method
def test_a_budget_that_no_rank_costs_exactly_is_met(method: str, finished: Any) -> None:
    arm, result = finished(method)
    assert result["budget"]["params"] == 1501
    assert_all_is_spent(arm, result)


def run_if_possible(arm: Arm) -> dict[str, Any] | None:
    """None where a baseline trains what this model lacks, and says so."""
    try:
        return arm.run()
    except UsageError as error:
        if arm.plan.exemption is None or "in this model" not in str(error):
            raise
        return None


# Encoders whose sites differ in cost, an encoder-decoder, and a decoder whose queries are wider than its values.
@each_method
@pytest.mark.parametrize(
    ("architecture", "budget", "target_modules"),
    [
        ("bert", "rank=3,steps=24", "all-linear"),
        ("bert", "params=3000,steps=24", ["query", "intermediate.dense", "output.dense"]),
        pytest.param("minilm", "rank=4,steps=24", "attention", marks=pytest.mark.slow),
        pytest.param("bart", "rank=4,steps=24", ["q_proj", "v_proj", "fc1"], marks=pytest.mark.slow),
        ("llama", "rank=4,steps=24", "all-linear"),
    ],
    ids=["sites that are not square", "mixed sites", "minilm", "encoder-decoder", "grouped queries"],
)
def test_the_budget_is_met(
    method: str, architecture: str, budget: str, target_modules: Any, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    # As many steps an epoch as elsewhere, of fewer tokens: this one is large.
    less = {"batch_size": 2, "max_train_samples": 18, "max_length": 8} if architecture == "minilm" else {}
    model = tiny_models[architecture]
    arm = make_arm(built(method), tmp_path, model, budget=budget, target_modules=target_modules, **less)
    result = run_if_possible(arm)
    if result is None:
        return
    kind, _, size = budget.partition(",")[0].partition("=")
    units = 1 if kind == "params" else sum(s.unit_cost for s in arm.plan.shapes)
    assert result["budget"]["params"] == int(size) * units
    assert_all_is_spent(arm, result)
    assert torch.isfinite(stored_logits(arm.folder)).all()


PAPERS = ("deberta-v2", "roberta", "gpt2", "t5", "bart", "llama")
"""The models that the methods' papers train: relative positions, one fused layer of Conv1D, and grouped queries."""


RECORDED = {"cut ranks": "removed", "grow ranks": "added", "remove sites": "dropped", "share adapters": "tied"}
RECORDED["zero entries"] = "events"
"""What a method's actions leave in the record of its decisions."""


def cases() -> Iterator[Any]:
    """All methods on all models; quick is one case per method, DeBERTaV3 for those that collect signals."""
    for i, method in enumerate(METHODS):
        quick = PAPERS[0 if load(method).signals else i % len(PAPERS)], "all-linear"
        for model, targets in product(PAPERS, ("attention", "all-linear")):
            marks = () if (model, targets) == quick else pytest.mark.slow
            yield pytest.param(method, model, targets, marks=marks)


@pytest.mark.parametrize(("method", "architecture", "targets"), list(cases()))
def test_every_method_decides_on_the_models_of_the_papers(
    method: str, architecture: str, targets: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    # GPT-2 has one layer for queries, keys and values; it alone leaves too little to decide on.
    modules = ["c_attn", "attn.c_proj"] if (architecture, targets) == ("gpt2", "attention") else targets
    arm = make_arm(built(method), tmp_path, tiny_models[architecture], target_modules=modules)
    result = run_if_possible(arm)
    if result is None:
        return
    assert_all_is_spent(arm, result)
    assert torch.isfinite(stored_logits(arm.folder)).all()
    trace, actions = arm.folder.allocation(), load(method).actions
    # The first row is the state before training.
    assert (len(trace) > 1) == (method in STRATEGIES and bool(actions))
    found = changes(trace)
    for action, count in RECORDED.items() if method in STRATEGIES else ():
        assert action not in actions or found[count] > 0, (action, found)


# --- strategies decide and touch nothing ------------------------------------------------------------------------------


class Untouched:
    """Notes the calls that change a parameter, gradient, buffer, the optimizer's state or the global random state."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.calls: set[str] = set()
        self.touched: set[str] = set()

    def __call__(self, name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        self.calls.add(name)
        before = everything(self.trainer.model, self.trainer.optimizer)
        answer = call(*arguments)
        if everything(self.trainer.model, self.trainer.optimizer) != before:
            self.touched.add(name)
        return answer


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def plain(plan: Any) -> Any:
    """A plan's contents, comparable to the bit; other answers as they are."""
    if not isinstance(plan, PruningPlan):
        return plan
    values = {name: getattr(plan, name) for name in PruningPlan.__dataclass_fields__}
    return values | {"drop": sorted(plan.drop)}


class Twin:
    """Has every call answered twice: by the strategy, and by a fresh one restored from its state and random stream.

    Notes where the two part.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.trainer: Any = None
        self.plans = 0
        self.states: list[tuple[Any, Any]] = []
        self.parted: set[str] = set()

    def __call__(self, name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        original = call.__self__
        if name in ("spec", "phases", "start"):
            return call(*arguments)
        rng = self.trainer.pruning.rng
        kept = original.state_dict()
        state = through_a_file(kept)
        self.states.append((kept, copy.deepcopy(state)))
        twin, stream = built(self.method), rng.get_state()
        twin.load_state_dict(state)
        theirs = getattr(twin, name)(*arguments)
        after = rng.get_state()
        rng.set_state(stream)
        answer = call(*arguments)
        if not same(plain(answer), plain(theirs)):
            self.parted.add(f"{name} depends on more than state, view and random stream")
        if not same(rng.get_state(), after):
            self.parted.add(f"{name} draws differently")
        if not same(original.state_dict(), twin.state_dict()):
            self.parted.add(f"{name} leaves another state")
        self.plans += isinstance(answer, PruningPlan) and not answer.is_empty
        return answer


@pytest.fixture(scope="module")
def watched(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`watched(method)`: an arm trained under the eyes of both, once per method, and its trainer."""

    @cache
    def run(method: str) -> tuple[Arm, Any, Untouched, Twin]:
        arm = make_arm(built(method), tmp_path_factory.mktemp("watched"), tiny_bert, target_modules="all-linear")
        untouched, twin = Untouched(), Twin(method)

        def around(name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
            return untouched(name, lambda *given: twin(name, call, given), arguments)

        _, _, trainer = arm.with_method(Spy(arm.plan.method, around)).build()  # type: ignore[arg-type]
        untouched.trainer = twin.trainer = trainer
        trainer.run()
        return arm, trainer, untouched, twin

    return run


@each_strategy
def test_no_call_changes_a_tensor(method: str, watched: Any) -> None:
    arm, trainer, untouched, _ = watched(method)
    assert {"start", "before_step", "observe", "decide", "end_phase"} <= untouched.calls
    assert not untouched.touched
    # Planning happens before there is a model, and again inside some methods: it must not change one either.
    before = everything(trainer.model, trainer.optimizer)
    arm.plan.method.spec(arm.plan.shapes, arm.plan.budget)
    arm.plan.method.phases(arm.plan.budget)
    assert everything(trainer.model, trainer.optimizer) == before


@each_strategy
def test_a_plan_is_a_function_of_state_view_and_random_stream(method: str, watched: Any) -> None:
    arm, _, _, twin = watched(method)
    assert not twin.parted
    assert (twin.plans > 0) == (arm.plan.method.prunes != "nothing")
    assert len(twin.states) > 24
    assert all(same(kept, copied) for kept, copied in twin.states), "a state changed after it was handed out"


# --- declarations -----------------------------------------------------------------------------------------------------


@each_method
def test_a_method_does_what_it_declares(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    found = Observed(make_arm(built(method), tmp_path, tiny_bert, target_modules="all-linear"))
    cls = load(method)
    assert (found.decides, found.actions) == (set(cls.decides), set(cls.actions))
    plan = planned(cls)
    assert (found.penalty, found.multipliers) == (plan["penalty"], plan["multipliers"])


# --- cutting and masking ----------------------------------------------------------------------------------------------


@each_strategy
def test_masked_training_gives_what_cutting_gives(
    method: str, finished: Any, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, expected = finished(method)
    cut = surgery.apply_plan

    def mask(sites: Any, plan: PruningPlan, **arguments: Any) -> Any:
        # Setting up (initial values, sites of rank 0) comes without an optimizer; only decisions are masked.
        return (masking.mask_plan if "optimizer" in arguments else cut)(sites, plan, **arguments)

    monkeypatch.setattr(inject, "Site", masking.MaskedSite)
    monkeypatch.setattr(surgery, "apply_plan", mask)
    monkeypatch.setattr(surgery, "set_multipliers", masking.set_multipliers)
    monkeypatch.setattr(surgery, "fold", masking.fold)
    arm = make_arm(built(method), tmp_path, tiny_bert, budget=UNEVEN)
    result = arm.run()
    assert [row["rank"] for row in result["allocation"]] == [row["rank"] for row in expected["allocation"]]
    torch.testing.assert_close(stored_logits(arm.folder), stored_logits(reference.folder), atol=1e-5, rtol=1e-5)


# --- resuming ---------------------------------------------------------------------------------------------------------


def record(arm: Arm, result: dict[str, Any]) -> dict[str, Any]:
    """All that an arm leaves behind, less wall-clock time."""
    ledger = {k: v for k, v in result["ledger"].items() if k not in WALL_CLOCK}
    losses = [{k: row[k] for k in ("loss", "learning_rate", "step") if k in row} for row in arm.folder.history()]
    return {
        "metrics": result["metrics"],
        "ledger": ledger,
        "phases spent on": sorted(result["ledger"]["phase_seconds"]),
        "allocation": result["allocation"],
        "trace": arm.folder.allocation(),
        "losses": [row for row in losses if "loss" in row],
        "logits": stored_logits(arm.folder),
        "adapter": stored_adapter(arm.folder),
    }


def assert_same_record(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for part, value in expected.items():
        assert same(found[part], value), part


class Steps:
    """Remembers the first step that it was told of."""

    first: int | None = None

    def __call__(self, done: int, total: int, phase: str) -> None:
        self.first = self.first or done


@each_baseline_slowly
def test_an_interrupted_run_ends_like_one_that_was_not(
    method: str, finished: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    """Saved at even steps; epochs end at 9 and 18, events lie at 5, 6, 9 and 10. So the run goes on before events that
    had happened, right at them, after them, and mid-epoch; it begins anew once, having saved nothing yet."""
    settings: dict[str, Any] = {"budget": UNEVEN, "checkpoints": 12}
    begun = []
    for crash_at in (1, 6, 7, 9, 11, 20, None):
        # A new process knows nothing of the old one's strategy.
        arm, steps = make_arm(built(method), tmp_path, tiny_bert, **settings), Steps()
        if crash_at is None:
            result = arm.run(progress=steps)
        else:
            with pytest.raises(CrashError):
                arm.run(crash_at=crash_at, progress=steps)
        begun.append(steps.first)
    # The first one died in its first step.
    assert begun == [None, 1, 5, 7, 9, 11, 19]
    assert_same_record(record(arm, result), record(*finished(method)))
    assert not arm.folder.checkpoints.exists()


# --- accumulation -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_method
def test_accumulation_of_4_times_8_is_a_batch_of_32(method: str, still_bert: Path, tmp_path: Path) -> None:
    found = []
    for parts in (1, 4):
        arm = make_arm(
            built(method), tmp_path / str(parts), still_bert, batch_size=32, gradient_accumulation_steps=parts
        )
        result = arm.run()
        assert_budget_met(arm, result)
        found.append((arm, result))
    (whole, expected), (split, result) = found
    for field in ("steps", "samples", "tokens", "forward_only_samples", "final_params", "peak_params"):
        assert result["ledger"][field] == expected["ledger"][field], field
    assert [row["rank"] for row in result["allocation"]] == [row["rank"] for row in expected["allocation"]]
    torch.testing.assert_close(stored_logits(split.folder), stored_logits(whole.folder), atol=2e-3, rtol=0)


def test_the_settings_cover_what_a_run_needs(tiny_bert: Path, tmp_path: Path) -> None:
    """Guards the tests above: the tiny arm has dropout, uneven batches, three epochs and texts of varied length."""
    arm = make_arm("lora", tmp_path, tiny_bert)
    inputs: ArmInputs = arm.inputs
    assert inputs.model.model.config.hidden_dropout_prob > 0
    assert len(inputs.train) == len(classification_task().train) == 70
    assert len({len(row["input_ids"]) for row in inputs.train}) > 5
