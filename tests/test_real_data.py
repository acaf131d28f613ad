"""The four methods on a real task with real pretrained weights, a few steps each."""

from __future__ import annotations

from pathlib import Path

import pytest

import peftprune

METHODS = (
    "lora",
    "lorpa(initial_rank=32)",
    "prilora(prune_every=3)",
    "lora-drop(sample=0.25,probe_passes=1)",
)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.minilm
def test_all_methods_train_on_rte_under_one_budget(tmp_path: Path) -> None:
    found = peftprune.compare(
        METHODS,
        "rte",
        model="minilm",
        budget="rank=4,steps=10",
        target_modules="attention",
        max_train_samples=48,
        max_length=64,
        batch_size=8,
        dtype="float32",
        checkpoints=0,
        output_dir=tmp_path,
    )
    table = found.table().set_index("method")
    assert list(table["status"]) == ["done"] * 4
    # minilm: 6 layers, query and value, width 384.
    assert list(table["final_params"]) == [4 * 12 * 768] * 4
    assert table.loc["lorpa", "peak_params"] == 32 * 12 * 768
    assert table.loc["prilora", "nonzero_params"] == 4 * 12 * (384 + 192)
    assert table["accuracy_mean"].between(0.3, 0.7).all()
    allocation = found.allocation()
    assert set(allocation[allocation["method"] == "lora-drop"]["site"].value_counts()) == {1}
    for method in table.index:
        assert (found.arm(method, 0).adapter / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.minilm
def test_three_epochs_learn_stsb(tmp_path: Path) -> None:
    """Labels from 0 to 5, with their mean at 2.7: without standardised targets the head takes long to reach it."""
    found = peftprune.compare(
        "lora",
        "stsb",
        model="minilm",
        budget="rank=8,epochs=3",
        max_length=64,
        dtype="float32",
        output_dir=tmp_path,
    )
    assert found.table()["pearson_mean"].item() >= 0.80
