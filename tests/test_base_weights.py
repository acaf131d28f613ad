"""Base models held in fewer bits: what is trained, what is counted, and what is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peftprune.errors import UsageError
from peftprune.models import precision as base_weights
from peftprune.models.load import load_model
from peftprune.study.planning import plan_methods
from peftprune.training.settings import TrainingSettings
from tests.helpers import make_arm
from tests.writers import save_writer, writing_task

WRITING: dict[str, Any] = {"max_target_length": 12, "max_new_tokens": 8, "max_length": 16, "learning_rate": 1e-2}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_trains_adapters_and_head_in_full(
    dtype: str, still_bert: Path, tmp_path: Path
) -> None:
    whole = make_arm("lora", tmp_path / "whole", still_bert).run()["ledger"]["base_bytes"]
    arm = make_arm("lora", tmp_path / "half", still_bert, base_dtype=dtype)
    model, _, _ = arm.build()
    # PEFT keeps the head as it was beside the one that is trained.
    kinds = {p.requires_grad: p.dtype for n, p in model.named_parameters() if "original_module" not in n}
    assert kinds == {True: torch.float32, False: getattr(torch, dtype)}
    result = arm.run()
    assert result["ledger"]["base_bytes"] == pytest.approx(whole / 2, rel=0.01)
    assert 0 <= result["metrics"]["accuracy"] <= 1
    assert arm.config["settings"]["base_dtype"] == dtype


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_a_quantised_base_trains(tmp_path: Path) -> None:
    folder = save_writer("llama", tmp_path / "model")
    plain = make_arm("lora", tmp_path / "plain", folder, task=writing_task(), **WRITING)
    arm = make_arm(
        "lora", tmp_path / "run", folder, task=writing_task(), budget="fraction=0.1,steps=24", load_in="8bit", **WRITING
    )
    same = make_arm("lora", tmp_path / "same", folder, task=writing_task(), budget="fraction=0.1,steps=24", **WRITING)
    assert arm.plan.ranks == same.plan.ranks
    result = arm.run()
    losses = [row["loss"] for row in arm.folder.history() if "loss" in row]
    assert min(losses[-4:]) < losses[0] - 0.1
    assert result["ledger"]["base_bytes"] < 0.7 * plain.run()["ledger"]["base_bytes"]


def test_quantising_where_it_cannot_be_had_is_refused(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = base_weights.BaseForm(load_in="4bit")
    monkeypatch.setattr("transformers.integrations.validate_bnb_backend_availability", lambda **_: False, raising=False)
    monkeypatch.setattr(base_weights.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="load_in: '4bit' is not supported by bitsandbytes on this machine"):
        load_model(tiny_bert, 2, form=form)
    monkeypatch.setattr(base_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package bitsandbytes.*peftprune\[quantised\]"):
        load_model(tiny_bert, 2, form=form)


def test_quantising_on_a_processor_without_the_kernels_is_refused(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Linear4bit(torch.nn.Linear):
        """Quantises, and cannot multiply."""

        def __init__(self, rows: int, columns: int, bias: bool, **options: Any) -> None:
            super().__init__(rows, columns, bias)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no kernel for this processor")

    package = SimpleNamespace(nn=SimpleNamespace(Linear4bit=Linear4bit), __spec__=object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setattr("transformers.integrations.validate_bnb_backend_availability", lambda **_: True, raising=False)
    with pytest.raises(UsageError, match=r"load_in: '4bit' does not work here \(no kernel for this processor\)"):
        load_model(tiny_bert, 2, form=base_weights.BaseForm(load_in="4bit"))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_the_trial_product_works_and_draws_no_random_number(load_in: Any) -> None:
    before = torch.get_rng_state()
    base_weights.check_quantisation(load_in, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["full", "bitfit", "head-only"])
def test_baselines_without_an_adapter_train_no_quantised_weights(method: str) -> None:
    with pytest.raises(UsageError, match=f"load_in: '4bit' needs an adapter, and {method} has none"):
        plan_methods(method, "minilm", "rank=4", "attention", "entailment-mini", load_in="4bit")
    assert plan_methods("vera,dora", "minilm", "rank=4", "attention", "entailment-mini", load_in="4bit")


def test_a_device_map_is_passed_on(tiny_bert: Path) -> None:
    form = TrainingSettings(device_map="cpu").base_form
    assert form.arguments() == {"dtype": torch.float32, "device_map": "cpu"}
    loaded = load_model(tiny_bert, 2, form=form)
    assert loaded.fingerprint == load_model(tiny_bert, 2).fingerprint


@pytest.mark.parametrize(("name", "value"), [("base_dtype", "int8"), ("load_in", "2bit"), ("device_map", 3)])
def test_forms_that_do_not_exist_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}: {value!r}"):
        TrainingSettings(**{name: value})
