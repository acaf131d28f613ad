"""`PruningCallback` in plain Trainers: one line, starting ranks, schedules, checkpoints, and what is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import peftprune
from peftprune import PruningCallback, UsageError
from peftprune.callback.attach import attach
from peftprune.callback.compatibility import check_trainer
from peftprune.callback.param_groups import StepParamGroups
from peftprune.errors import RunError
from peftprune.methods.registry import load, names
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.phases import Phase, PhaseRange
from peftprune.strategy.sites import LiveTensors
from peftprune.strategy.spec import ParameterGroup
from peftprune.training import distributed as processes
from peftprune.training.checkpoints import STATE_FILE
from peftprune.training.objectives import classification_loss
from peftprune.training.schedule import rewarm_factors
from tests.helpers import make_arm, same
from tests.plain import adapted, arguments, examples, plain_trainer
from tests.strategies import Gated
from tests.tiny import random_batch

# PEFT reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
SEED_METHODS = ["lorpa", "prilora(prune_every=5)", "lora-drop(sample=0.3,probe_passes=2)"]
BUDGET = "rank=4"
RENAMED = "activation_checkpointing"
CHECKPOINTING = RENAMED if hasattr(TrainingArguments, RENAMED) else "gradient_checkpointing"
"""Its name since transformers 5.23, and before."""
ROOT = Path(__file__).parents[1]


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """What the adapter holds now."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n}


def logits(model: Any, rows: Any = None) -> torch.Tensor:
    """Outputs on a fixed batch, in eval mode."""
    batch = random_batch(vocab=27)
    batch.pop("labels")
    with torch.no_grad():
        return model.eval()(**batch).logits


def trained(method: Any, model: Path, folder: Path, *, rank: int = 16, callback: Any = None, **changes: Any) -> Any:
    """(trainer, callback) after training."""
    callback = callback or PruningCallback(method, budget=BUDGET)
    trainer = plain_trainer(adapted(model, rank), arguments(folder, **changes), callback)
    trainer.train()
    return trainer, callback


# --- one line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SEED_METHODS)
def test_what_is_saved_is_a_plain_adapter_within_the_budget(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    trainer, callback = trained(method, tiny_bert, tmp_path)
    trainer.save_model(str(tmp_path / "adapter"))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(trainer.model))
    summary = callback.summary()
    sizes = [m.lora_A["default"].weight.shape[0] for m in loaded.modules() if hasattr(m, "lora_A")]
    assert sizes == list(summary["ranks"].values())
    assert summary["done"]
    assert summary["ledger"]["final_params"] == summary["params_allowed"] == 4 * 4 * 64
    assert summary["ledger"]["steps"] == 24
    assert len(callback.trace.rows) >= 2


def test_a_rank_by_option_may_exceed_the_budget(tiny_bert: Path, tmp_path: Path) -> None:
    _, callback = trained("lora(rank=9)", tiny_bert, tmp_path)
    assert callback.summary()["ledger"]["final_params"] == 9 * 4 * 64


def test_the_example_is_short_and_gains_a_method_by_one_line() -> None:
    source = (ROOT / "examples" / "plain_trainer.py").read_text()
    code = [line for line in source.splitlines() if line.strip()]
    assert len(code) <= 42
    assert sum("PruningCallback(" in line for line in code) == 1


@pytest.mark.slow
@pytest.mark.minilm
@pytest.mark.parametrize("method", ["lorpa", "prilora", "lora-drop"])
def test_the_example_runs(method: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "plain_trainer.py"), method]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/plain/adapter/adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("method", [n for n in names() if n not in ("shuffled", "transplant")])
def test_every_rank_method_runs_in_a_plain_trainer(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    if not issubclass(load(method), RankPruningStrategy):
        with pytest.raises(UsageError, match="is a baseline"):
            PruningCallback(method, budget=BUDGET)
        return
    _, callback = trained(method, tiny_bert, tmp_path)
    assert callback.ledger.final_params == 1024


@pytest.mark.parametrize("method", ["lorpa", "lora-drop(sample=0.3,probe_passes=2)"])
def test_given_equal_weights_it_keeps_what_compare_keeps(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    """Both decide on the same weights, set just before the decision: by the view alone."""

    class SameWeights(TrainerCallback):
        def __init__(self, sites: Any) -> None:
            self.sites = sites

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rng = torch.Generator().manual_seed(5)
            for site in self.sites().values():
                if site.rank:
                    for tensor in (site.A, site.B):
                        tensor.copy_(torch.randn(tensor.shape, generator=rng))

    arm = make_arm(method if method != "lorpa" else "lorpa(initial_rank=16)", tmp_path / "arm", tiny_bert)
    _, sites, ours = arm.build()
    ours.callback_handler.callbacks.insert(0, SameWeights(lambda: sites))
    ours.run()
    callback = PruningCallback(method, budget=BUDGET)
    rows = peftprune.sampler(examples())
    late = SameWeights(lambda: callback._start.sites)
    plain_trainer(adapted(tiny_bert), arguments(tmp_path), late, callback, rows=rows).train()
    kept = [[row["sites"] for row in rows] for rows in (ours.pruning.trace.rows, callback.trace.rows)]
    components = [[{n: s["components"] for n, s in row.items()} for row in rows] for rows in kept]
    assert components[0] == components[1]
    assert components[0][1:]


# --- starting ranks ---------------------------------------------------------------------------------------------------


def started(method: Any, model: Any, folder: Path, **changes: Any) -> PruningCallback:
    callback = PruningCallback(method, budget=BUDGET)
    plain_trainer(model, arguments(folder, **changes), callback)
    return callback


def test_a_method_that_comes_down_starts_from_the_users_adapter(tiny_bert: Path, tmp_path: Path) -> None:
    model = adapted(tiny_bert, 16)
    before = tensors(model)
    callback = started("lorpa", model, tmp_path)
    assert set(callback.summary()["ranks"].values()) == {16}
    assert same(before, tensors(model))
    assert set(started("lorpa(initial_rank=8)", adapted(tiny_bert, 16), tmp_path).summary()["ranks"].values()) == {8}


def test_other_methods_resize_the_sites_and_keep_the_function_and_the_scaling(tiny_bert: Path, tmp_path: Path) -> None:
    model = adapted(tiny_bert, 3, lora_alpha=12)
    before = logits(model)
    callback = started("prilora", model, tmp_path)
    assert list(callback.summary()["ranks"].values()) == [2, 2, 6, 6]
    assert torch.equal(logits(model), before)
    assert callback._start is not None
    assert {s.scaling for s in callback._start.sites.values()} == {4.0}


@pytest.mark.parametrize(
    ("method", "rank", "said"),
    [
        ("lorpa", 2, r"r: 2 at bert\.encoder.*below the budget's rank there, 4\. Make the adapter with a larger r"),
        ("lorpa", 4, r"r: 4 leaves lorpa nothing to cut: 1,024 parameters, and the budget is 1,024"),
        ("adalora", 4, r"r: 4 leaves adalora nothing to cut"),
    ],
)
def test_ranks_that_are_too_small_are_refused(
    method: str, rank: int, said: str, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        started(method, adapted(tiny_bert, rank), tmp_path)


def test_a_trained_adapter_is_not_cut_before_training(tiny_bert: Path, tmp_path: Path) -> None:
    model = adapted(tiny_bert, 16, init_lora_weights=False)
    with pytest.raises(UsageError, match="has been trained before"):
        started("prilora", model, tmp_path)
    assert set(started("lorpa", model, tmp_path).summary()["ranks"].values()) == {16}


# --- schedule, optimizer, data ----------------------------------------------------------------------------------------


def test_the_users_schedule_is_rewarmed_where_a_phase_restarts_it() -> None:
    ranges = [PhaseRange(Phase("a"), 0, 4), PhaseRange(Phase("b", restart_schedule=True), 4, 10)]
    assert rewarm_factors(ranges, 0.5) == [1, 1, 1, 1, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1]
    assert rewarm_factors(ranges[:1], 0.5) == [1] * 4


def test_the_rate_in_use_is_the_users_times_the_factor_and_is_what_is_logged(tiny_bert: Path, tmp_path: Path) -> None:
    used: list[float] = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            used.append(kwargs["optimizer"].param_groups[0]["lr"])

    callback = PruningCallback("lorpa(dense_share=0.25)", budget=BUDGET, warmup_ratio=0.2)
    args = arguments(tmp_path, logging_steps=1, learning_rate=0.01)
    trainer = plain_trainer(adapted(tiny_bert), args, callback, Look())
    trainer.train()
    ramp = [1.0] * 6 + [1 / 5, 2 / 5, 3 / 5, 4 / 5] + [1.0] * 14
    expected = [0.01 * (24 - i) / 24 * ramp[i] for i in range(24)]
    assert used == pytest.approx(expected)
    assert [row["learning_rate"] for row in trainer.state.log_history if "loss" in row] == pytest.approx(expected)


def test_settings_of_a_methods_own_reach_the_optimizer_for_the_step_only(tiny_bert: Path, tmp_path: Path) -> None:
    found: list[Any] = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.append([(len(g["params"]), g["lr"], g["weight_decay"]) for g in kwargs["optimizer"].param_groups])

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found.append([len(g["params"]) for g in kwargs["optimizer"].param_groups])

    args = arguments(tmp_path, weight_decay=0.1, lr_scheduler_type="constant", learning_rate=0.01, max_steps=4)
    plain_trainer(adapted(tiny_bert, 8), args, PruningCallback(Gated(), budget=BUDGET), Look()).train()
    # Four pairs and the head's weight; four gates, at twenty times the rate and without decay; the head's bias.
    assert found[0] == [(9, 0.01, 0.1), (4, 0.2, 0.0), (1, 0.01, 0.0)]
    assert found[1] == [13, 1]


def test_a_method_that_says_it_ends_below_the_budget_may(tiny_bert: Path, tmp_path: Path) -> None:
    spec = "lora-drop(sample=0.3,probe_passes=2,threshold=0.01,rest='delete',refill=False)"
    callback = PruningCallback(spec, budget=BUDGET)
    plain_trainer(adapted(tiny_bert), arguments(tmp_path), callback).train()
    assert callback.ledger.final_params == 4 * 64


def test_a_constant_rate_of_a_methods_own_ignores_the_users_schedule() -> None:
    gate, other = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    sites: Any = SimpleNamespace(groups=lambda: [[SimpleNamespace(live=lambda: LiveTensors(other, other, gate))]])
    optimizer = torch.optim.AdamW([gate, other], lr=0.004)
    settings = {"gate": ParameterGroup(lr=0.2, constant=True)}
    StepParamGroups(settings, 0.01, 0.0).override(optimizer, sites, factor=0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [pytest.approx(0.2), pytest.approx(0.002)]


def test_a_forward_only_phase_changes_nothing_and_reads_a_sample(tiny_bert: Path, tmp_path: Path) -> None:
    seen: list[tuple[bool, Any]] = []
    batches: list[Any] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((kwargs["model"].training, tensors(kwargs["model"])))

    model = adapted(tiny_bert)
    model.register_forward_pre_hook(lambda m, a, k: batches.append(k["input_ids"]), with_kwargs=True)
    callback = PruningCallback("lora-drop(sample=0.3,probe_passes=2)", budget=BUDGET)
    plain_trainer(model, arguments(tmp_path), Look(), callback).train()
    # 21 examples in three steps, twice for the probe and once for the scores; the ninth step ends the epoch with six.
    assert [training for training, _ in seen[:10]] == [True] * 6 + [False] * 3 + [True]
    assert same(seen[5][1], seen[7][1])
    assert not same(seen[4][1], seen[5][1])
    read = {tuple(i for i in row.tolist() if i) for ids in batches[:9] for row in ids}
    assert 10 < len(read) <= 21
    assert callback.ledger.forward_only_samples == 22


def test_a_dataset_without_a_length_cannot_serve_a_sample(tiny_bert: Path, tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield from examples() * 5

    callback = PruningCallback("lora-drop(sample=0.05)", budget=BUDGET)
    trainer = plain_trainer(adapted(tiny_bert), arguments(tmp_path), callback, rows=Stream())
    with pytest.raises(UsageError, match=r"cannot serve phase 'probe'.*peftprune\.sampler"):
        trainer.train()
    with pytest.raises(UsageError, match="has no examples to count"):
        peftprune.sampler(Stream())
    with pytest.raises(UsageError, match="has no input_ids"):
        peftprune.sampler([{"text": "a"}])


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {CHECKPOINTING: True},
        {"bf16": True},
    ],
    ids=["accumulation", "checkpointing", "bfloat16"],
)
@pytest.mark.parametrize(
    "method",
    ["lora-drop(sample=0.3,probe_passes=2)", pytest.param("prilora(prune_every=5)", marks=pytest.mark.slow)],
)
def test_it_trains_as_without(changes: dict[str, Any], method: str, still_bert: Path, tmp_path: Path) -> None:
    """Accumulation and activation checkpointing change rounding only; bfloat16 trains and stays within the budget."""
    found = []
    for extra in ({}, changes):
        callback = PruningCallback(method, budget=BUDGET)
        prepared = peftprune.prepare(adapted(still_bert), method, BUDGET)
        args = arguments(tmp_path, **extra, max_grad_norm=0.0)
        rows = peftprune.sampler(examples(72))
        plain_trainer(prepared, args, callback, rows=rows, compute_loss_func=classification_loss).train()
        found.append((callback, tensors(prepared)))
    assert found[0][0].ledger.final_params == found[1][0].ledger.final_params == 1024
    assert found[0][0].ledger.tokens == found[1][0].ledger.tokens
    if "bf16" not in changes:
        assert found[0][0].summary()["ranks"] == found[1][0].summary()["ranks"]
        for name, tensor in found[0][1].items():
            torch.testing.assert_close(found[1][1][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Ends the process's training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:(?s).*rank_gate")
@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("lorpa", 8),
        ("lora-drop(sample=0.3,probe_passes=2)", 12),
        pytest.param("lorpa", 4, marks=pytest.mark.slow),
        pytest.param("sora", 8, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(method: str, step: int, tiny_bert: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole, _ = trained(method, tiny_bert, tmp_path / "whole", **saving)
    torn = PruningCallback(method, budget=BUDGET)
    with pytest.raises(KeyboardInterrupt):
        plain_trainer(adapted(tiny_bert), arguments(tmp_path / "torn", **saving), torn, Stop(step)).train()
    callback = PruningCallback(method, budget=BUDGET)
    trainer = plain_trainer(adapted(tiny_bert), arguments(tmp_path / "torn", **saving), callback)
    trainer.train(resume_from_checkpoint=True)
    assert same(tensors(trainer.model), tensors(whole.model))
    assert callback.ledger.steps == 24
    assert callback.summary()["done"]


def test_a_checkpoint_of_another_kind_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 8}
    trained("lorpa", tiny_bert, tmp_path, **saving)
    last = Path(get_last_checkpoint(str(tmp_path)) or "")
    other = plain_trainer(adapted(tiny_bert), arguments(tmp_path), PruningCallback("svd", budget=BUDGET))
    with pytest.raises(UsageError, match="was trained with method lorpa, and the callback has svd"):
        other.train(resume_from_checkpoint=str(last))
    for damage in (lambda f: f.write_bytes(f.read_bytes()[:-200]), lambda f: f.unlink()):
        damage(last / STATE_FILE)
        again = plain_trainer(adapted(tiny_bert), arguments(tmp_path), PruningCallback("lorpa", budget=BUDGET))
        with pytest.raises(UsageError, match=rf"has no {STATE_FILE} that can be read"):
            again.train(resume_from_checkpoint=str(last))


def falling(
    method: str, model: Path, folder: Path, scores: Iterable[float] = range(100, 0, -1), **changes: Any
) -> tuple[Any, PruningCallback, list[Any]]:
    """(trainer, callback, predictions) that evaluates every four steps, when the metric falls each time."""
    callback, given, predictions = PruningCallback(method, budget=BUDGET), iter(scores), []

    def measure(found: Any) -> dict[str, float]:
        predictions.append(found.predictions)
        return {"score": float(next(given))}

    saving = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    args = arguments(folder, **saving | best | changes)
    rows = examples(20, 9)
    trainer = plain_trainer(adapted(model), args, callback, eval_dataset=rows, compute_metrics=measure)
    return trainer, callback, predictions


@pytest.mark.filterwarnings("ignore:(?s).*rank_gate")
@pytest.mark.parametrize(
    ("method", "decided", "best"),
    [
        ("lorpa(dense_share=0.5)", 12, 12),
        ("lora-drop(sample=0.3,probe_passes=2)", 9, 12),
        ("delete(sample=0.3,probe_passes=2,threshold=0.6)", 9, 12),
        ("adalora(every=3,warmup=0.15)", 12, 12),
        ("prilora(prune_every=5)", 24, 24),
    ],
)
def test_only_states_after_the_last_decision_may_be_the_best(
    method: str, decided: int, best: int, tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, callback, predictions = falling(method, tiny_bert, tmp_path, save_total_limit=1)
    trainer.train()
    assert trainer.state.best_global_step == best
    assert trainer.state.best_metric == 101 - best // 4
    trainer.evaluate()
    assert predictions[-1] == pytest.approx(predictions[best // 4 - 1], abs=1e-6, rel=1e-5)
    assert callback.ledger.final_params == 1024
    assert f"step 4 scored better (100), but does not count: {callback.strategy.name} decided until step {decided}" in (
        caplog.text
    )


def test_without_a_checkpoint_after_the_last_decision_the_final_state_is_kept(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, callback, _ = falling("lorpa(dense_share=0.5)", tiny_bert, tmp_path, [2, 1, *[math.nan] * 4])
    trainer.train()
    assert trainer.state.best_model_checkpoint is None
    assert callback.ledger.final_params == 1024
    assert "no best checkpoint exists since the last decision (step 12); the final state is kept" in caplog.text


def test_a_resumed_run_remembers_what_scored_better_before(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn, *_ = falling("lorpa(dense_share=0.5)", tiny_bert, tmp_path)
    torn.add_callback(Stop(16))
    with pytest.raises(KeyboardInterrupt):
        torn.train()
    resumed, *_ = falling("lorpa(dense_share=0.5)", tiny_bert, tmp_path, range(96, 0, -1))
    resumed.train(resume_from_checkpoint=True)
    assert "step 4 scored better (100)" in caplog.text


# --- refusals ---------------------------------------------------------------------------------------------------------


def two_adapters(folder: Path) -> Any:
    model = adapted(folder)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["query"]))
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda f: AutoModelForSequenceClassification.from_pretrained(f, num_labels=2), "is not a PEFT model"),
        (lambda f: adapted(f, use_dora=True), "use_dora: True"),
        (lambda f: adapted(f, init_lora_weights="pissa"), "changes the base model's weights"),
        (lambda f: adapted(f, target_modules=["word_embeddings"]), "target_modules: .*whose ranks cannot change"),
        (lambda f: adapted(f, lora_bias=True), "lora_bias"),
        (two_adapters, "Train one adapter"),
    ],
)
def test_models_whose_ranks_cannot_change_are_refused(model: Any, said: str, tiny_bert: Path, tmp_path: Path) -> None:
    made = model(tiny_bert)
    with pytest.raises(UsageError, match=said):
        started("lorpa", made, tmp_path)


def test_another_peft_method_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    from peft import IA3Config

    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    config = IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    with pytest.raises(UsageError, match="peft_type: 'IA3' is not LORA"):
        started("lorpa", get_peft_model(base, config), tmp_path)


@pytest.mark.parametrize("optim", ["adafactor", "adamw_bnb_8bit", "galore_adamw"])
def test_optimizers_whose_state_cannot_be_cut_are_refused(optim: str, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"optim: '{optim}' keeps state"):
        started("lorpa", adapted(tiny_bert), tmp_path, optim=optim)


class ScheduleFree(torch.optim.SGD):
    """Switches between the weights of training and of evaluation."""

    def train(self) -> None: ...

    def eval(self) -> None: ...

    def step(self, closure: Any = None) -> Any:
        raise RuntimeError("call train() first")


class NeedsClosure(torch.optim.LBFGS):
    """Cannot step without a closure."""


@pytest.mark.parametrize(("optimizer", "said"), [(ScheduleFree, "trains other"), (NeedsClosure, "cannot be tried")])
def test_optimizers_that_switch_weights_or_need_more_are_refused(
    optimizer: Any, said: str, tiny_bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="optim: 'schedule_free_adamw' trains other weights than it evaluates"):
        started("lorpa", adapted(tiny_bert), tmp_path, optim="schedule_free_adamw")
    model = adapted(tiny_bert)
    made = optimizer(p for p in model.parameters() if p.requires_grad)
    callback = PruningCallback("lorpa", budget=BUDGET)
    with pytest.raises(UsageError, match=f"optimizer: '{optimizer.__name__}' {said}"):
        plain_trainer(model, arguments(tmp_path), callback, optimizers=(made, None))


def test_two_callbacks_on_one_adapter_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    def callback() -> PruningCallback:
        return PruningCallback("lorpa", budget=BUDGET)

    said = r"\['lorpa', 'lorpa'\] would prune one adapter. Give the trainer one PruningCallback"
    with pytest.raises(UsageError, match=said):
        plain_trainer(adapted(tiny_bert), arguments(tmp_path), callback(), callback())
    late = plain_trainer(adapted(tiny_bert), arguments(tmp_path), callback())
    late.add_callback(callback())
    with pytest.raises(UsageError, match=said):
        late.train()


def test_a_model_belongs_to_the_newest_trainer(tiny_bert: Path, tmp_path: Path) -> None:
    model, args = adapted(tiny_bert), arguments(tmp_path, max_steps=4)
    first, second = (plain_trainer(model, args, PruningCallback("lorpa", budget=BUDGET)) for _ in range(2))
    with pytest.raises(UsageError, match="belongs to a newer trainer"):
        first.train()
    second.train()


ROWS = [{"input_ids": [1]}]


@pytest.mark.parametrize(
    "bad", [None, "", "a", -1, math.nan, math.inf, [], {"a": 1}, object()], ids=lambda bad: type(bad).__name__
)
@pytest.mark.parametrize(
    ("call", "given", "argument", "said"),
    [
        (PruningCallback, {"method": "lorpa", "budget": BUDGET}, argument, said)
        for argument, said in (("method", "method"), ("initial_rank", r"lorpa\.initial_rank"), ("mine", "lorpa option"),
                               ("budget", "budget"), ("seed", "seed"), ("schedule", "s"), ("warmup_ratio", "warm"))
    ]
    + [
        (peftprune.prepare, {"model": None, "method": "lorpa", "budget": BUDGET}, argument, argument)
        for argument in ("model", "method", "budget", "seed", "scaling")
    ]
    + [(peftprune.sampler, {"dataset": ROWS}, argument, argument) for argument in ("dataset", "seed")]
    + [(attach, {}, "model", "model")],
)  # fmt: skip
def test_wrong_types_and_ranges_are_usage_errors(
    call: Any, given: dict[str, Any], argument: str, said: str, bad: Any
) -> None:
    if argument == "seed" and bad is None and call is not peftprune.prepare:
        call(**given, seed=None)
        return
    with pytest.raises(UsageError, match=f"^{said}"):
        call(**given | {argument: bad})


def test_sharded_training_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"fsdp": [], "deepspeed": None, "n_gpu": 1, "optim": "adamw_torch"}
    for name, value in (("fsdp", ["full_shard"]), ("deepspeed", "zero3.json"), ("n_gpu", 2)):
        with pytest.raises(UsageError, match=f"^{name}: .*(DDP|torchrun)"):
            check_trainer(SimpleNamespace(**plain | {name: value}))
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        monkeypatch.setitem(AcceleratorState._shared_state, "distributed_type", kind)
        with pytest.raises(UsageError, match=f"^distributed_type: '{kind.value}'"):
            check_trainer(SimpleNamespace(**plain))


def test_a_callback_that_comes_too_late_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    trainer = plain_trainer(adapted(tiny_bert), arguments(tmp_path, max_steps=2))
    trainer.add_callback(PruningCallback("prilora", budget=BUDGET))
    with pytest.raises(UsageError, match=r"was added to a trainer that exists.*callbacks=\[PruningCallback"):
        trainer.train()
    # Nothing must be resized here.
    fitting = plain_trainer(adapted(tiny_bert, 16), arguments(tmp_path))
    callback = PruningCallback("lorpa", budget=BUDGET)
    fitting.add_callback(callback)
    fitting.train()
    assert callback.ledger.final_params == 1024
    with pytest.raises(UsageError, match="has run already"):
        fitting.train()


def test_requests_that_cannot_be_run_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    for given, said in (
        ({"method": "full"}, "is a baseline"),
        ({"method": "shuffled"}, "needs the outcome of lora-drop"),
        ({"method": "lorpa,lora"}, "names several"),
        ({"method": "lorpaa"}, "Did you mean 'lorpa'"),
        ({"method": Gated(), "kind": "site"}, "came with a strategy object"),
        ({"budget": "paper"}, "is not a number of parameters"),
        ({"budget": "rank=0"}, "rank"),
        ({"schedule": "mine"}, "is unknown"),
        ({"warmup_ratio": math.nan}, "is outside"),
        ({"initial_ranks": 3}, "does not exist"),
    ):
        with pytest.raises(UsageError, match=said):
            PruningCallback(**{"method": "lorpa", "budget": BUDGET} | given)
    trainer = plain_trainer(adapted(tiny_bert), arguments(tmp_path), PruningCallback("lorpa", budget="rank=4,steps=30"))
    with pytest.raises(UsageError, match="means 30 steps, and the trainer makes 24"):
        trainer.train()
    prepared = peftprune.prepare(adapted(tiny_bert), "lorpa(initial_rank=8)", BUDGET)
    with pytest.raises(UsageError, match="is not what the model was prepared for"):
        started("lorpa", prepared, tmp_path)
    with pytest.raises(UsageError, match="scaling"):
        peftprune.prepare(adapted(tiny_bert), "lorpa", BUDGET, scaling=0)


def test_processes_that_disagree_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(found: list[Any], value: Any) -> None:
        found[:] = [value, "other"]

    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes.distributed, "all_gather_object", gather)
    with pytest.raises(RunError, match="the ranks differ between them"):
        processes.check_agreement(lambda: "mine", "the ranks")
    processes.check_agreement(lambda: "other", "the ranks")


def test_classes_and_objects_are_methods_too(tiny_bert: Path, tmp_path: Path) -> None:
    for method in (Gated, Gated(kind="site")):
        assert started(method, adapted(tiny_bert), tmp_path).strategy.name == "gated"
