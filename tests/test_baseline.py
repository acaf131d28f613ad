"""A method that is not rank pruning runs beside the strategies, with its exemption in the table."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

import peftprune
from peftprune.models.load import load_model
from tests.helpers import classification_task


class HeadAndLayerNorms(peftprune.Baseline):
    """Trains the head and every layer norm."""

    name: ClassVar[str] = "norms"
    exemption: ClassVar[str | None] = "its size is fixed by the model"

    def prepare(self, model, given):
        for name, param in model.named_parameters():
            param.requires_grad_(name.startswith("classifier") or "LayerNorm" in name)
        return model


def test_a_baseline_runs_beside_lora_and_leaves_the_shared_model_alone(tiny_bert: Path, tmp_path: Path) -> None:
    shared = load_model(tiny_bert, 2).model
    before = {n: p.detach().clone() for n, p in shared.named_parameters()}
    result = peftprune.compare(
        [HeadAndLayerNorms, "lora"],
        classification_task(),
        model=tiny_bert,
        budget="rank=2,steps=8",
        batch_size=8,
        learning_rate=0.05,
        max_length=32,
        dtype="float32",
        output_dir=tmp_path,
    )
    table = result.table().set_index("method")
    assert dict(table["status"]) == {"norms": "done", "lora": "done"}, result.failures
    norms = sum(p.numel() for n, p in before.items() if "LayerNorm" in n)
    assert table.loc["norms", "final_params"] == norms
    assert table.loc["norms", "head_params"] == table.loc["lora", "head_params"] == 32 * 2 + 2
    assert table.loc["norms", "exemption"] == "its size is fixed by the model"
    assert table.loc["lora", "exemption"] == ""
    assert all(torch.equal(p, before[n]) for n, p in shared.named_parameters() if not n.startswith("classifier"))
