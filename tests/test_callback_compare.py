"""A plain Trainer with the callback decides and ends as `compare` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import peftprune
from peftprune.training.objectives import classification_loss
from tests.helpers import make_arm, same, stored_adapter
from tests.plain import STEPS, adapted, arguments, examples, plain_trainer

METHODS = ["lorpa", "prilora(prune_every=5)", "lora-drop(sample=0.3,probe_passes=2)"]
OTHERS = ["lora", "svd", "adalora(every=4)", "eva(sample=0.3)", "sora", "lora-fa"]
BUDGET = "rank=4"


def compared(method: str, model: Path, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """The adapter that the comparison ends with."""
    arm = make_arm(method, folder, model, budget=f"{BUDGET},steps={STEPS}", seed=3, **settings)
    arm.run()
    return stored_adapter(arm.folder)


def plain(method: str, model: Path, folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The adapter that a plain Trainer's script ends with."""
    from safetensors.torch import load_file

    prepared = peftprune.prepare(adapted(model), method, BUDGET, seed=3)
    callback = peftprune.PruningCallback(method, budget=BUDGET, schedule="restart")
    args = arguments(folder, lr_scheduler_type="constant", weight_decay=0.01, **changes)
    rows = peftprune.sampler(examples())
    trainer = plain_trainer(prepared, args, callback, rows=rows, compute_loss_func=classification_loss)
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS + [pytest.param(m, marks=pytest.mark.slow) for m in OTHERS])
def test_prepared_and_sampled_it_ends_with_the_adapter_of_compare_to_the_bit(
    method: str, tiny_bert: Path, tmp_path: Path
) -> None:
    expected = compared(method, tiny_bert, tmp_path / "compare")
    assert same(plain(method, tiny_bert, tmp_path / "plain"), expected)
