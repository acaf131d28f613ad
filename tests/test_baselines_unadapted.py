"""Baselines without an adapter: what they train, what they cost, and what the tables say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import peftprune
from peftprune.analysis.frames import Frames
from peftprune.cli import console as tables
from peftprune.cli import terminal
from peftprune.errors import UsageError
from peftprune.models.load import load_model
from peftprune.study.planning import plan_methods
from tests.helpers import classification_task, make_arm, same, stored_adapter

HEAD = 2 * 32 + 2


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def trained_in(arm: Any) -> tuple[set[str], set[str], Any]:
    """Names of the parameters that a run changed, and of those it was to leave alone; its trainer."""
    model, _, trainer = arm.build()
    before = weights(model)
    trainer.run()
    after = weights(model)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    return changed, set(before) - changed, trainer


@pytest.mark.parametrize("method", ["head-only", "full", "bitfit"])
def test_exactly_what_is_named_is_trained(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    changed, still, _ = trained_in(make_arm(method, tmp_path, tiny_bert))
    if method == "full":
        # Positions and token types that no text has get no gradient, but their tables do.
        assert not still
    elif method == "bitfit":
        assert all(n.endswith(".bias") for n in changed - {"classifier.weight"})
        # The key's bias shifts all of a query's scores alike, so softmax gives it no gradient beyond rounding.
        assert not [n for n in still if n.endswith(".bias") and "key" not in n]
    else:
        assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("method", ["head-only", "full", "bitfit"])
def test_the_ledger_counts_what_is_trained(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    shared = weights(load_model(tiny_bert, 2).model)
    outside = {n: p.numel() for n, p in shared.items() if not n.startswith("classifier")}
    expected = {
        "head-only": 0,
        "full": sum(outside.values()),
        "bitfit": sum(size for n, size in outside.items() if n.endswith("bias")),
    }[method]
    arm = make_arm(method, tmp_path, tiny_bert)
    result = arm.run()
    ledger = result["ledger"]
    for field in ("final_params", "peak_params", "unique_params", "expanded_params", "trained_params"):
        assert ledger[field] == expected, field
    assert ledger["head_params"] == HEAD
    # AdamW: two moments and a step count a tensor, 4 bytes each.
    tensors = stored_adapter(arm.folder)
    assert ledger["optimizer_bytes"] == 8 * (expected + HEAD) + 4 * len(tensors)
    assert sum(t.numel() for t in tensors.values()) == expected + HEAD
    assert ledger["adapter_bytes"] == (arm.folder.adapter / "trained.safetensors").stat().st_size
    plan = plan_methods(method, tiny_bert, "rank=4", "attention", "entailment-mini")[method]
    assert (plan["final_params"], plan["head_params"]) == (expected, HEAD)


def test_flops_follow_what_the_backward_pass_computes(tiny_bert: Path, tmp_path: Path) -> None:
    spent = {m: make_arm(m, tmp_path / m, tiny_bert).run()["ledger"] for m in ("head-only", "full", "bitfit", "lora")}
    assert len({(s["steps"], s["samples"], s["tokens"]) for s in spent.values()}) == 1
    cost = make_arm("lora", tmp_path, tiny_bert).inputs.base_cost
    base = {m: s["base_flops"] for m, s in spent.items()}
    forward = base["head-only"]
    assert base["bitfit"] == base["lora"]
    assert forward < base["lora"] < base["full"]
    # Both differ from the forward pass by whole passes over the linear layers and attention.
    weights_only = base["full"] - base["lora"]
    assert base["lora"] - forward == pytest.approx(weights_only + 2 * (forward - weights_only))
    assert weights_only % (2 * cost.linear_params) == 0
    assert all(s["adapter_flops"] == 0 for m, s in spent.items() if m != "lora")


@pytest.mark.parametrize("method", ["head-only", "full", "bitfit", "dora", "vera(rank=8)", "lora-fa"])
def test_every_baseline_starts_with_the_head_of_lora(method: str, tiny_bert: Path, tmp_path: Path) -> None:
    def head(name: str) -> list[torch.Tensor]:
        model, _, trainer = make_arm(name, tmp_path, tiny_bert, seed=3).build()
        assert trainer.sampler.batch(5) == make_arm("lora", tmp_path, tiny_bert, seed=3).build()[2].sampler.batch(5)
        found = [p for n, p in model.named_parameters() if "classifier" in n and p.requires_grad]
        assert len(found) == 2
        return found

    assert same(head(method), head("lora"))


def test_full_fine_tuning_has_a_learning_rate_of_its_own(tiny_bert: Path, tmp_path: Path) -> None:
    _, _, trainer = make_arm("full(lr_scale=0.1)", tmp_path, tiny_bert, learning_rate=1e-2, weight_decay=0.3).build()
    groups = trainer.create_optimizer().param_groups
    assert all(g["lr"] == pytest.approx(1e-3) for g in groups)
    decay = {all(p.dim() >= 2 for p in g["params"]): g["weight_decay"] for g in groups}
    assert decay == {True: 0.3, False: 0.0}


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan")])
def test_a_learning_rate_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(UsageError, match=r"full\.lr_scale: .* is not (above 0|finite)\. Give 0\.02"):
        peftprune.methods.registry.load("full")(lr_scale=value)


def test_bitfit_refuses_a_model_without_biases(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bitfit.*finds no bias terms in this model.*take another model"):
        make_arm("bitfit", tmp_path, tiny_models["llama"]).run()


@pytest.mark.slow
def test_exemptions_stand_in_every_table(
    tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "PLAIN_WIDTH", 260)
    methods = ["lora", "head-only", "full", "bitfit", "dora", "vera(rank=8)"]
    result = peftprune.compare(
        methods,
        classification_task(),
        model=tiny_bert,
        budget="rank=4,steps=4",
        batch_size=8,
        max_length=32,
        dtype="float32",
        target_modules="all-linear",
        output_dir=tmp_path,
        seeds=2,
    )
    assert not result.failures
    assert "Writing model shards" not in capsys.readouterr().err
    table = result.table().set_index("method")
    shown = {m: table.loc[m, "exemption"] for m in table.index}
    assert [m for m, text in shown.items() if text] == ["head-only", "full", "bitfit", "vera"]
    tables.show_comparison(Frames(result, whole=True))
    printed = " ".join(capsys.readouterr().out.split())
    for method, text in shown.items():
        assert text == "" or text[:25] in printed, method
    for kind in ("ranks", "quality", "curves", "cost"):
        result.plot(kind, tmp_path / f"{kind}.png")
