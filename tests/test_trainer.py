"""The trainer: losses, gradients, schedules, phases, gates, failures and torn checkpoints."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import TrainerCallback

from peftprune.adapters import surgery
from peftprune.errors import RunError
from peftprune.study import arm as arm_module
from peftprune.training.checkpoints import MANIFEST_FILE
from peftprune.training.evaluation import predict
from tests.helpers import Arm, CrashError, classification_task, make_arm, regression_task, same, stored_logits
from tests.spies import Spy, digest
from tests.strategies import Broken, Gated, Multiplied, Pausing, Penalised, Warm
from tests.test_contract import assert_same_record, record

FLAT = {"max_grad_norm": 0.0, "weight_decay": 0.0, "learning_rate": 1e-12}
"""Settings under which weights stay (to rounding) and gradients are not clipped."""


class Around:
    """Calls `function(view)` at every event of one name."""

    def __init__(self, event: str, function: Any) -> None:
        self.event = event
        self.function = function

    def __call__(self, name: str, call: Any, arguments: tuple[Any, ...]) -> Any:
        if name == self.event:
            self.function(arguments[0])
        return call(*arguments)


def watch(arm: Arm, event: str, function: Any) -> tuple[Any, Any, Any]:
    """The arm's model, sites and trainer, with `function(model, view)` called at an event."""
    around = Around(event, None)
    built = arm.with_method(Spy(arm.plan.method, around)).build()  # type: ignore[arg-type]
    around.function = lambda view: function(built[0], view)
    return built


def gradients(arm: Arm) -> list[dict[str, torch.Tensor]]:
    """The gradients of every step, as the optimizer gets them."""
    found: list[dict[str, torch.Tensor]] = []

    def keep(model: Any, view: Any) -> None:
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    watch(arm, "observe", keep)[2].run()
    return found


def loss_of(model: Any, arm: Arm, step: int, task_kind: str) -> torch.Tensor:
    """The mean loss over all examples of a step at once, written out."""
    sampler = arm.build()[2].sampler
    batch = arm.inputs.objective.collator([arm.inputs.train[i] for i in sampler.batch(step)])
    labels = batch.pop("labels")
    logits = model(**batch).logits
    if task_kind == "regression":
        targets = torch.tensor([row["labels"] for row in arm.inputs.train])
        labels = (labels - targets.mean()) / targets.std(correction=0)
        return ((logits.squeeze(-1) - labels) ** 2).mean()
    return functional.cross_entropy(logits, labels)


# --- loss and gradient ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("parts", [1, 4])
def test_loss_and_gradient_are_those_of_the_whole_batch(
    kind: str, parts: int, still_bert: Path, tmp_path: Path
) -> None:
    """Three steps: two of 32 examples, and the rest of the epoch, 6 examples that 4 does not divide."""
    task = classification_task() if kind == "classification" else regression_task(tmp_path)
    settings = {"batch_size": 32, "gradient_accumulation_steps": parts, "budget": "rank=4,steps=3"}
    arm = make_arm(Warm(), tmp_path / "arm", still_bert, task=task, **settings, **FLAT)
    assert len(arm.build()[2].sampler.batch(2)) == 6
    found = gradients(arm)
    model, _, trainer = arm.build()
    trainer.run()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    model.eval()
    for step in range(3):
        model.zero_grad()
        loss = loss_of(model, arm, step, kind)
        loss.backward()
        assert logged[step] == pytest.approx(loss.item(), rel=1e-5)
        expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert expected.keys() == found[step].keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found[step][name], gradient, rtol=1e-4, atol=1e-6, msg=f"{name}, step {step + 1}"
            )


@pytest.mark.parametrize("parts", [1, 4])
def test_a_penalty_enters_the_gradients_once_and_no_loss(parts: int, still_bert: Path, tmp_path: Path) -> None:
    settings = FLAT | {"batch_size": 32, "gradient_accumulation_steps": parts, "budget": "rank=4,steps=2"}
    arms = [make_arm(method, tmp_path, still_bert, **settings) for method in (Warm(), Penalised())]
    (plain, *_), (penalised, *_) = map(gradients, arms)
    _, sites, _ = arms[0].build()
    for name, gradient in plain.items():
        extra = next((6 * s.A for n, s in sites.items() if f"{n}.lora_A" in name), 0.0)
        torch.testing.assert_close(penalised[name], gradient + extra, rtol=1e-4, atol=1e-5)

    losses = []
    for arm in arms:
        _, _, trainer = arm.build()
        trainer.run()
        rows = next(iter(arm.inputs.evaluation.values()))
        evaluated = trainer.evaluate(rows)["eval_loss"]
        losses.append([evaluated, *(row["loss"] for row in trainer.state.log_history if "loss" in row)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_evaluating_in_between_changes_nothing_that_follows(tiny_bert: Path, tmp_path: Path) -> None:
    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (3, 10):
                predict(trainer, arm.inputs.evaluation["test"])

    arm = make_arm("lora", tmp_path, tiny_bert)
    found = []
    for callbacks in ([], [Look()]):
        model, _, trainer = arm.build()
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.run()
        found.append(digest(model.parameters()))
    assert found[0] == found[1]


# --- phases -----------------------------------------------------------------------------------------------------------


def test_forward_only_phases_update_nothing_and_are_charged(tiny_bert: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def look(model: Any, view: Any) -> None:
        state = trainer.optimizer.state if trainer.optimizer is not None else {}
        seen.append(digest([*model.parameters(), *(v for s in list(state.values()) for v in s.values())]))

    arm = make_arm(Pausing(), tmp_path, tiny_bert, weight_decay=0.1)
    _, _, trainer = watch(arm, "before_step", look)
    trainer.run()
    changed = [before != after for before, after in pairwise(seen)]
    # Step s (from 0) ends between the looks before step s and before step s + 1.
    assert changed == [True] * 12 + [False] * 6 + [True] * 5
    ledger = trainer.pruning.ledger
    sizes = [len(trainer.sampler.batch(step)) for step in range(24)]
    assert (ledger.steps, ledger.samples) == (24, sum(sizes))
    assert ledger.forward_only_samples == sum(sizes[12:18])
    _, _, plain = make_arm("lora", tmp_path, tiny_bert).build()
    plain.run()
    assert plain.pruning.ledger.tokens == ledger.tokens
    assert plain.pruning.ledger.base_flops > ledger.base_flops > 0


def test_the_logged_learning_rate_is_the_one_in_use_and_follows_the_phases(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("lora-restart(dense_share=0.25)", tmp_path, tiny_bert, warmup_ratio=0.3, learning_rate=0.01)
    used: list[float] = []
    _, _, trainer = watch(arm, "observe", lambda model, view: used.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.run()
    logged = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    # Six steps of which two warm up, then eighteen of which six warm up.
    first = [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]
    second = [i / 7 for i in range(1, 7)] + [i / 12 for i in range(12, 0, -1)]
    assert used == pytest.approx([0.01 * f for f in first + second])
    assert logged == pytest.approx(used)


# --- multipliers and gates --------------------------------------------------------------------------------------------


def test_multipliers_hold_during_the_steps_only(still_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(Multiplied(), tmp_path, still_bert, weight_decay=0.0)
    _, sites, trainer = arm.build()
    before = {n: (s.A.clone(), s.B.clone()) for n, s in sites.items()}
    trainer.run()
    for name, site in sites.items():
        A, B = before[name]
        assert torch.equal(site.A[2:], A[2:])
        assert torch.equal(site.B[:, 2:], B[:, 2:])
        assert not torch.equal(site.A[:2], A[:2])
    # Afterwards all components count again: removing those that were multiplied by zero changes the function.
    rows = arm.inputs.evaluation["test"]
    logits = predict(trainer, rows)
    for site in sites.values():
        site.B[:, 2:] = 0.0
    assert not torch.allclose(predict(trainer, rows), logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["rank", "site"])
def test_a_gated_strategy_with_proximal_steps_trains_folds_and_exports(
    kind: str, tiny_bert: Path, tmp_path: Path
) -> None:
    arm = make_arm(Gated(kind=kind), tmp_path, tiny_bert)
    _, sites, trainer = arm.build()
    gates = {n: s.gate.shape for n, s in sites.items()}
    assert set(gates.values()) == {(8,) if kind == "rank" else (1,)}
    trainer.run()
    after = torch.cat([s.gate for s in sites.values()])
    # 24 steps each take 0.05 away from 0.9; what the optimizer adds in between differs by component.
    assert after.max() < 0.9
    assert len(after.unique()) > 1
    logits = predict(trainer, arm.inputs.evaluation["test"])
    surgery.fold(sites)
    assert all(s.gate is None and s.scaling == 1.0 and s.rank == 4 for s in sites.values())
    torch.testing.assert_close(predict(trainer, arm.inputs.evaluation["test"]), logits, atol=1e-6, rtol=1e-5)

    result = arm.run()
    torch.testing.assert_close(stored_logits(arm.folder), logits, atol=1e-6, rtol=1e-5)
    assert result["ledger"]["final_params"] == result["budget"]["params"]
    assert result["ledger"]["peak_params"] == 2 * result["budget"]["params"]


@pytest.mark.parametrize("kind", ["rank", "site"])
def test_gates_survive_a_crash(kind: str, tiny_bert: Path, tmp_path: Path) -> None:
    whole = make_arm(Gated(kind=kind), tmp_path / "whole", tiny_bert)
    expected = record(whole, whole.run())
    for crash_at in (8, 18):
        with pytest.raises(CrashError):
            make_arm(Gated(kind=kind), tmp_path / "torn", tiny_bert, checkpoints=8).run(crash_at=crash_at)
    arm = make_arm(Gated(kind=kind), tmp_path / "torn", tiny_bert, checkpoints=8)
    assert_same_record(record(arm, arm.run()), expected)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_arm_and_says_what_to_do(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("lora", tmp_path, tiny_bert, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(RunError, match=r"loss: nan by step \d+ is not finite\. Lower learning_rate \(now 1e\+30\)"):
        arm.run()


def test_a_plan_that_breaks_the_weights_stops_the_arm(tiny_bert: Path, tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(RunError, match=r"step 4\b"):
        make_arm(Broken(), tmp_path, tiny_bert).run(progress=lambda step, total, phase: done.append(step))
    assert done[-1] == 4


def test_each_decision_is_logged_in_one_line(tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "peftprune")
    arm = make_arm("lorpa(initial_rank=16)", tmp_path, tiny_bert, budget="rank=4,steps=12")
    arm.run()
    (line,) = [m for m in caplog.messages if m.startswith("step ")]
    assert line.startswith("step ")
    assert ": lorpa: " in line
    assert line.endswith("; ranks in total 64 → 16")


def test_an_optimizer_whose_state_cannot_be_cut_is_refused(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = arm_module._arguments
    monkeypatch.setattr(arm_module, "_arguments", lambda *given: replace(arguments(*given), optim="adafactor"))
    done: list[int] = []
    with pytest.raises(RunError, match=r"optimizer: Adafactor keeps .* Use AdamW or SGD"):
        make_arm("lora", tmp_path, tiny_bert).run(progress=lambda step, total, phase: done.append(step))
    assert done == []


# --- checkpoints ------------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    file = folder / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])


def delete_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


@pytest.mark.parametrize("damage", [truncate, delete_manifest])
def test_a_torn_checkpoint_is_passed_over(damage: Any, tiny_bert: Path, tmp_path: Path) -> None:
    whole = make_arm("lorpa(initial_rank=16)", tmp_path / "whole", tiny_bert)
    expected = record(whole, whole.run())
    arm = make_arm("lorpa(initial_rank=16)", tmp_path / "torn", tiny_bert, checkpoints=8)
    with pytest.raises(CrashError):
        arm.run(crash_at=11)
    assert sorted(p.name for p in arm.folder.checkpoints.iterdir()) == ["checkpoint-6", "checkpoint-9"]
    damage(arm.folder.checkpoints / "checkpoint-9")
    arm = make_arm("lorpa(initial_rank=16)", tmp_path / "torn", tiny_bert, checkpoints=8)
    steps: list[int] = []
    result = arm.run(progress=lambda done, total, phase: steps.append(done))
    assert steps[0] == 7
    assert_same_record(record(arm, result), expected)


def test_where_every_checkpoint_is_torn_the_arm_starts_anew(tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm("lora", tmp_path, tiny_bert, checkpoints=8)
    with pytest.raises(CrashError):
        arm.run(crash_at=8)
    for folder in arm.folder.checkpoints.iterdir():
        truncate(folder)
    # What a death while writing leaves behind.
    (arm.folder.checkpoints / "incomplete" / "checkpoint-9").mkdir(parents=True)
    steps: list[int] = []
    make_arm("lora", tmp_path, tiny_bert, checkpoints=8).run(progress=lambda done, total, phase: steps.append(done))
    assert steps == list(range(1, 25))


# --- seeds ------------------------------------------------------------------------------------------------------------


def start_of(method: str, seed: int, model: Path, folder: Path, rank: int = 4) -> dict[str, Any]:
    """What an arm starts from: head, first rows of A, B, and the order of the data."""
    built, sites, trainer = make_arm(method, folder, model, seed=seed, budget=f"rank={rank},steps=24").build()
    head = {n: p.clone() for n, p in built.named_parameters() if p.requires_grad and "lora" not in n}
    assert head
    return {
        "head": head,
        "A": {n: s.A[:4].clone() for n, s in sites.items()},
        "B": [float(s.B.abs().max()) for s in sites.values()],
        "order": [trainer.sampler.batch(step) for step in range(12, 24)],
    }


def test_one_seed_gives_one_start_whatever_the_method_and_rank(tiny_bert: Path, tmp_path: Path) -> None:
    reference = start_of("lora", 3, tiny_bert, tmp_path)
    for method, rank in (("lora", 9), ("lorpa(initial_rank=16)", 4), ("lora-drop(sample=0.25,probe_passes=2)", 4)):
        torch.manual_seed(99)
        assert same(start_of(method, 3, tiny_bert, tmp_path, rank), reference), (method, rank)


def test_different_seeds_start_differently(tiny_bert: Path, tmp_path: Path) -> None:
    one, other = (start_of("lora", seed, tiny_bert, tmp_path) for seed in (3, 4))
    assert one["B"] == other["B"] == [0.0] * 4
    for part in ("head", "A", "order"):
        assert not same(one[part], other[part]), part
