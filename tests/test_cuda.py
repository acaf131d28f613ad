"""Training on a GPU: every method in both half precisions, resumed, two arms on one device, and fractions of it by Ray.

`make test-cuda` runs these alone and writes `benchmarks/results/cuda.json`. With PEFTPRUNE_TEST_DEVICE=cpu they run on
a CPU, which checks all but the device.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import peftprune
from peftprune.comparison import Comparison
from peftprune.models.precision import pick_dtype
from peftprune.study.task_setup import hardware
from peftprune.training.cpu.dropout import KeyedDropout
from tests.helpers import DEFAULTS, CrashError, classification_task, make_arm, stored_logits, texts
from tests.test_contract import METHODS, built, run_if_possible

pytestmark = pytest.mark.cuda

DEVICE = os.environ.get("PEFTPRUNE_TEST_DEVICE", "cuda")
HALVES = {"bf16": {"dtype": "bfloat16"}, "fp16": {"base_dtype": "float16"}}
"""The settings that compute in half precision: autocast, and frozen weights in it."""
TWO = {"budget": "rank=2,steps=12", "target_modules": "attention", "seeds": 1, "threads": 1}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_half_precision(method: str, half: str, tiny_bert: Path, tmp_path: Path) -> None:
    arm = make_arm(built(method), tmp_path, tiny_bert, target_modules="all-linear", **HALVES[half])
    result = run_if_possible(arm)
    if result is None:
        return
    assert result["ledger"]["steps"] == 24
    assert torch.isfinite(stored_logits(arm.folder)).all()
    if result["exemption"] is None:
        assert result["ledger"]["final_params"] <= result["budget"]["params"]


def test_the_device_is_used_and_cpu_parts_are_left_out(tiny_bert: Path, tmp_path: Path) -> None:
    model, _, trainer = make_arm("lora", tmp_path, tiny_bert).build()
    assert trainer.args.device.type == DEVICE
    assert {p.device.type for p in trainer.model.parameters()} == {DEVICE}
    assert any(isinstance(m, KeyedDropout) for m in model.modules()) == (DEVICE == "cpu")
    assert (hardware()["device"] == "cpu") == (DEVICE == "cpu")
    if DEVICE == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        assert pick_dtype() == ("bfloat16" if supported else "float32")


@pytest.mark.parametrize("method", ["lora", "lorpa", "adalora", "lora-drop", "increlora"])
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    whole = make_arm(built(method), tmp_path / "whole", tiny_bert)
    expected = whole.run()
    with pytest.raises(CrashError):
        make_arm(built(method), tmp_path / "cut", tiny_bert, checkpoints=12).run(crash_at=11)
    again, steps = make_arm(built(method), tmp_path / "cut", tiny_bert, checkpoints=12), list[int]()
    found = again.run(progress=lambda done, total, phase: steps.append(done))
    assert steps[0] == 11
    assert [row["rank"] for row in found["allocation"]] == [row["rank"] for row in expected["allocation"]]
    # A GPU may add up in another order.
    torch.testing.assert_close(stored_logits(again.folder), stored_logits(whole.folder), atol=1e-3, rtol=1e-3)


def test_two_arms_share_one_device(tiny_bert: Path, tmp_path: Path) -> None:
    alone, beside = (
        peftprune.compare(
            "lora,lorpa(initial_rank=8)",
            classification_task(),
            model=tiny_bert,
            output_dir=tmp_path / str(workers),
            workers=workers,
            **(DEFAULTS | TWO),
        )
        for workers in (1, 2)
    )
    assert not beside.failures
    for key, arm in beside.arms():
        expected = stored_logits(alone.arm(key["method"], key["seed"]))
        torch.testing.assert_close(stored_logits(arm), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed; the extra ray has it")
def test_ray_gives_two_arms_half_a_device_each(tiny_bert: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "test")):
        found, labels = texts(40, seed)
        pd.DataFrame({"text": found, "label": labels}).to_csv(tmp_path / f"{name}.csv", index=False)
    options: dict[str, Any] = {f"{name}-file": tmp_path / f"{name}.csv" for name in ("train", "test")}
    options |= {"text": "text", "label": "label", "model": tiny_bert, "output-dir": tmp_path / "study"}
    options |= {"methods": "lora,lorpa(initial_rank=8)", "backend": "ray", "address": "local"}
    options |= {name.replace("_", "-"): value for name, value in (DEFAULTS | TWO).items()}
    options["gpus"] = 0.5 if DEVICE == "cuda" else 0
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "peftprune", "compare", *words]
    patient = os.environ | {"RAY_raylet_start_wait_time_s": "600"}  # a machine with other work takes its time
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=patient)
    assert done.returncode == 0, done.stderr
    assert set(Comparison.load(tmp_path / "study").runs()["status"]) == {"done"}
