"""What every registered method must keep to. A new method needs one row in `SETTINGS` and nothing else here."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from peftprune import surgery
from peftprune.arm import ArmInputs
from peftprune.errors import UsageError
from peftprune.methods import load, names
from peftprune.strategy import PruningPlan, RankPruningStrategy
from tests.helpers import Arm, CrashError, classification_task, make_arm, same, stored_adapter, stored_logits
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
    "increlora": {"warmup": 0.15, "final": 0.3},
    "elalora": {"every": 3, "exchanged": 2, "warmup": 0.15},
    "reverse": {"sample": 0.25, "probe_passes": 2.0, "threshold": 0.6},
    "top-layers": {},
    "shuffled": {"of": "prilora"},
    "svd": {"initial_rank": 16},
    "sora": {"initial_rank": 8, "threshold": 0.02},
    "weightlora": {"weight_lr": 1.0},
    "dylora": {"initial_rank": 6},
    "l1ra": {"l1": 0.5, "gate_lr": 0.1, "update_share": 0.21},
    "head-only": {},
    "full": {},
    "bitfit": {},
    "rslora": {},
    "lora-fa": {},
    "dora": {},
    "vera": {"rank": 16},
    "eva": {"sample": 0.25},
}
METHODS = sorted(SETTINGS)
STRATEGIES = [m for m in METHODS if issubclass(load(m), RankPruningStrategy)]
WALL_CLOCK = {"seconds", "phase_seconds", "evaluation_seconds", "peak_memory_bytes"}

each_method = pytest.mark.parametrize("method", METHODS)
# What concerns plans and views: a baseline has none.
each_strategy = pytest.mark.parametrize("method", STRATEGIES)


def built(method: str) -> Any:
    """A fresh strategy with its row's options."""
    return load(method)(**SETTINGS[method])


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`finished(method)`: an arm that ran without interruption, once per method, and its result."""
    known: dict[str, tuple[Arm, dict[str, Any]]] = {}

    def run(method: str) -> tuple[Arm, dict[str, Any]]:
        if method not in known:
            arm = make_arm(built(method), tmp_path_factory.mktemp("finished"), tiny_bert)
            known[method] = arm, arm.run()
        return known[method]

    return run


def test_every_registered_method_has_a_row() -> None:
    assert set(names()) <= set(SETTINGS), "add a row of settings for the new method"


# --- the budget -------------------------------------------------------------------------------------------------------


def assert_budget_met(arm: Arm, result: dict[str, Any]) -> None:
    """Nothing overspent, and no further unit of rank would fit; counted from the allocation, not by the library."""
    if result["exemption"]:
        assert result["exemption"] == arm.plan.method.exemption  # type: ignore[union-attr]
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


@each_method
@pytest.mark.parametrize(
    ("budget", "target_modules", "params"),
    [
        ("params=1501,steps=24", "attention", 1501),
        ("rank=3,steps=24", "all-linear", 3 * 2 * (4 * 64 + 2 * 96)),
        ("params=3000,steps=24", ["query", "intermediate.dense", "output.dense"], 3000),
    ],
    ids=["no multiple of a unit", "sites that are not square", "mixed sites"],
)
def test_the_budget_is_met(
    method: str, budget: str, target_modules: Any, params: int, tiny_bert: Path, tmp_path: Path
) -> None:
    arm = make_arm(built(method), tmp_path, tiny_bert, budget=budget, target_modules=target_modules)
    result = arm.run()
    assert result["budget"]["params"] == params
    assert_budget_met(arm, result)
    assert result["ledger"]["steps"] == 24
    assert result["ledger"]["peak_params"] >= result["ledger"]["final_params"]


@each_method
@pytest.mark.parametrize("architecture", ["bart", "llama"])
def test_other_architectures_meet_the_budget(
    method: str, architecture: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    arm = make_arm(built(method), tmp_path, tiny_models[architecture], target_modules="all-linear")
    try:
        result = arm.run()
    except UsageError as error:
        # A baseline that trains what the model has may find nothing of it, and then says so.
        if arm.plan.exemption is None or "in this model" not in str(error):
            raise
        return
    assert_budget_met(arm, result)
    assert torch.isfinite(stored_logits(arm.folder)).all()


# --- strategies decide and touch nothing ------------------------------------------------------------------------------


def watched(arm: Arm, around: Any) -> Any:
    """Train the arm with `around` called at every event; returns its trainer."""
    arm = arm.with_method(Spy(arm.plan.method, around))  # type: ignore[arg-type]
    _, _, trainer = arm.build()
    around.trainer = trainer
    trainer.run()
    return trainer


class Untouched:
    """Fails where a call changes a parameter, gradient, buffer, the optimizer's state or the global random state."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.calls: set[str] = set()

    def __call__(self, name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        self.calls.add(name)
        before = everything(self.trainer.model, self.trainer.optimizer)
        answer = call(*arguments)
        assert everything(self.trainer.model, self.trainer.optimizer) == before, f"{name} changed something"
        return answer


@each_strategy
def test_no_call_changes_a_tensor(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(built(method), tmp_path, tiny_bert, target_modules="all-linear")
    around = Untouched()
    trainer = watched(arm, around)
    assert {"start", "before_step", "observe", "decide", "end_phase"} <= around.calls
    # Planning happens before there is a model, and again inside some methods: it must not change one either.
    before = everything(trainer.model, trainer.optimizer)
    arm.plan.method.spec(arm.plan.shapes, arm.plan.budget)  # type: ignore[union-attr]
    arm.plan.method.phases(arm.plan.budget)  # type: ignore[union-attr]
    assert everything(trainer.model, trainer.optimizer) == before


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
    """Has every call answered twice: by the strategy, and by a fresh one restored from its state and random stream."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.trainer: Any = None
        self.plans = 0
        self.states: list[tuple[Any, Any]] = []

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
        assert same(plain(answer), plain(theirs)), f"{name} depends on more than state, view and random stream"
        assert same(rng.get_state(), after), f"{name} draws differently"
        assert same(through_a_file(original.state_dict()), through_a_file(twin.state_dict()))
        self.plans += isinstance(answer, PruningPlan) and not answer.is_empty
        return answer


@each_strategy
def test_a_plan_is_a_function_of_state_view_and_random_stream(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(built(method), tmp_path, tiny_bert, target_modules="all-linear")
    around = Twin(method)
    watched(arm, around)
    expected = arm.plan.method.prunes != "nothing"  # type: ignore[union-attr]
    assert (around.plans > 0) == expected
    assert len(around.states) > 24
    assert all(same(kept, copied) for kept, copied in around.states), "a state changed after it was handed out"


# --- cutting and masking ----------------------------------------------------------------------------------------------


FIELDS = ("keep", "zero", "drop", "assign", "grow", "share", "reinit")


@each_strategy
def test_masked_training_gives_what_cutting_gives(
    method: str, finished: Any, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, expected = finished(method)
    cut = surgery.apply_plan
    used: set[str] = set()

    def mask(sites: Any, plan: PruningPlan, **arguments: Any) -> None:
        # Setting up (initial values, sites of rank 0) comes without an optimizer; only decisions are masked.
        decided = "optimizer" in arguments
        if decided:
            used.update(name for name in FIELDS if getattr(plan, name))
        cut(sites, plan, **arguments, physical=not decided)

    monkeypatch.setattr(surgery, "apply_plan", mask)
    arm = make_arm(built(method), tmp_path, tiny_bert)
    result = arm.run()
    if not used <= {"keep", "zero", "drop", "assign"}:
        pytest.skip(f"plans with {', '.join(sorted(used))} give tensors new shapes, which masks cannot")
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


@each_method
@pytest.mark.parametrize("crashes", [(1, 6, 7), (9, 11, 20)], ids=str)
def test_an_interrupted_run_ends_like_one_that_was_not(
    method: str, crashes: tuple[int, ...], finished: Any, tiny_bert: Path, tmp_path: Path
) -> None:
    """Saved at even steps; epochs end at 9 and 18, events lie at 5, 6, 9 and 10. So runs go on before events that had
    happened, right at them, after them, and mid-epoch."""
    for crash_at in crashes:
        # A new process knows nothing of the old one's strategy.
        with pytest.raises(CrashError):
            make_arm(built(method), tmp_path, tiny_bert, checkpoints=12).run(crash_at=crash_at)
    arm = make_arm(built(method), tmp_path, tiny_bert, checkpoints=12)
    steps: list[int] = []
    result = arm.run(progress=lambda done, total, phase: steps.append(done))
    assert steps[0] == (crashes[-1] - 1) // 2 * 2 + 1
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
