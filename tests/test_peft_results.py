"""PEFT's result files: files of its schema, broken ones, and files that are something else."""

import json
from pathlib import Path
from typing import Any

import pytest

from peftprune.analysis.peft_results import PeftResults, read_peft_method_comparison
from peftprune.comparison import Comparison
from peftprune.errors import UsageError


def result(name: str, peft_config: dict[str, Any] | None, *, seed: int = 0, score: float = 0.48) -> dict[str, Any]:
    """A file as PEFT writes it, shortened."""
    return {
        "run_info": {
            "created_at": "2025-06-19T19:15:35+00:00",
            "total_time": 1993.5,
            "experiment_name": name,
            "peft_branch": "main",
            "train_config": {
                "model_id": "meta-llama/Llama-3.2-3B",
                "dtype": "bfloat16",
                "batch_size": 4,
                "max_steps": 5000,
                "seed": seed,
                "optimizer_type": "AdamW",
                "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
            },
            "peft_config": peft_config,
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": 11_000,
            "accelerator_memory_max": 22_000,
            "accelerator_memory_reserved_99th": 17_000,
            "train_time": 1796.2,
            "file_size": 36_715_216,
            "num_trainable_params": 9_175_040,
            "num_total_params": 3_221_924_864,
            "status": "success",
            "metrics": [
                {"step": 250, "valid accuracy": 0.34, "train loss": 0.98, "train samples": 1000},
                {"step": 5000, "test accuracy": score, "train loss": 0.6, "train samples": 20_000},
            ],
        },
        "meta_info": {
            "model_info": {"sha": "13af", "created_at": "2024-09-18T15:23:48+00:00"},
            "dataset_info": {"metamath": {"sha": "aa4f", "created_at": "2023-09-21T17:22:46+00:00"}},
            "package_info": {"peft-version": "0.15.2", "torch-version": "2.7.1"},
            "system_info": {"system": "Linux", "accelerator": "NVIDIA L40S"},
            "pytorch_info": "PyTorch built with: ...",
        },
    }


def adalora(kept: dict[str, list[bool]]) -> dict[str, Any]:
    return {"peft_type": "ADALORA", "r": 8, "init_r": 4, "target_r": 2, "lora_alpha": 8, "rank_pattern": kept}


LORA = {"peft_type": "LORA", "r": 32, "lora_alpha": 64, "rank_pattern": {}, "alpha_pattern": {}}
KEPT = {
    "model.layers.0.self_attn.q_proj.lora_E": [False, False, False, False],
    "model.layers.0.self_attn.v_proj.lora_E": [True, True, True, False],
    "model.layers.1.self_attn.q_proj.lora_E": [True, False, True, False],
    "model.layers.1.self_attn.v_proj.lora_E": [True, True, True, True],
}


def write(folder: Path, **files: object) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path,
        a_adalora=result("adalora/llama-3.2-3B-rank32", adalora(KEPT), score=0.39),
        b_lora=result("lora/llama-3.2-3B-rank32", LORA),
        c_full=result("full-finetuning/llama-3.2-3B", None, score=0.5),
    )
    return tmp_path


def test_runs(folder: Path) -> None:
    found = read_peft_method_comparison(folder)
    assert found.metrics == ["test_accuracy"]
    assert found.skipped == {}
    runs = found.runs()
    assert runs["method"].tolist() == [
        "adalora/llama-3.2-3B-rank32",
        "lora/llama-3.2-3B-rank32",
        "full-finetuning/llama-3.2-3B",
    ]
    assert runs["peft_type"].tolist() == ["adalora", "lora", "full-finetuning"]
    assert runs["test_accuracy"].tolist() == [0.39, 0.48, 0.5]
    row = runs.iloc[1]
    assert (row["seed"], row["final_params"], row["file_bytes"], row["steps"]) == (0, 9_175_040, 36_715_216, 5000)
    assert (row["seconds"], row["memory_bytes"], row["status"]) == (1796.2, 22_000, "done")


def test_allocation_counts_what_is_kept(folder: Path) -> None:
    frame = read_peft_method_comparison(folder).allocation()
    assert frame["method"].unique().tolist() == ["adalora/llama-3.2-3B-rank32"]
    assert list(zip(frame["site"], frame["layer"], frame["kind"], frame["rank"], strict=True)) == [
        ("model.layers.0.self_attn.q_proj", 0, "self_attn.q_proj", 0),
        ("model.layers.0.self_attn.v_proj", 0, "self_attn.v_proj", 3),
        ("model.layers.1.self_attn.q_proj", 1, "self_attn.q_proj", 2),
        ("model.layers.1.self_attn.v_proj", 1, "self_attn.v_proj", 4),
    ]
    assert set(frame["density"]) == {1.0}
    assert set(frame["shared_with"]) == {""}


def test_frames_fit_those_of_a_study(folder: Path, tmp_path: Path) -> None:
    found = read_peft_method_comparison(folder)
    request = {"arms": [], "tasks": [{"name": "a-task", "metrics": ["test_accuracy"]}], "budgets": [], "methods": []}
    empty = Comparison(tmp_path, request)
    assert list(found.allocation().columns) == list(empty.allocation().columns)
    assert set(found.runs()["task"]) == set(found.allocation()["task"]) == {found.task}
    shared = {"task", "budget", "method", "seed", "test_accuracy", "final_params", "seconds", "status"}
    assert shared <= set(found.runs().columns) & set(empty.runs().columns)


def test_ranks_are_drawn(folder: Path, tmp_path: Path) -> None:
    found = read_peft_method_comparison(folder)
    found.plot_ranks(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1000


def test_a_folder_without_ranks_has_no_allocation(tmp_path: Path) -> None:
    write(tmp_path, lora=result("lora/x", LORA))
    found = read_peft_method_comparison(tmp_path)
    assert found.allocation().empty
    with pytest.raises(UsageError, match="no rows"):
        found.plot_ranks()


def test_lists_of_blocks_are_told_apart_and_lora_patterns_read(tmp_path: Path) -> None:
    """An image model has two lists of blocks; LoRA's patterns are numbers, perhaps anchored and escaped."""
    two = {
        "transformer_blocks.0.attn.to_out.0.lora_E": [True, False],
        "single_transformer_blocks.0.attn.to_out.lora_E.default": [True, True],
    }
    pattern = {r"^model\.layers\.3\.mlp\.up_proj$": 12, "no_number": 3}
    write(tmp_path, a=result("adalora/x", adalora(two)), b=result("lora/x", {**LORA, "rank_pattern": pattern}))
    frame = read_peft_method_comparison(tmp_path).allocation()
    assert list(zip(frame["site"], frame["layer"], frame["kind"], frame["rank"], strict=True)) == [
        ("transformer_blocks.0.attn.to_out.0", 0, "transformer_blocks.attn.to_out.0", 1),
        ("single_transformer_blocks.0.attn.to_out", 0, "single_transformer_blocks.attn.to_out", 2),
        ("model.layers.3.mlp.up_proj", 3, "mlp.up_proj", 12),
    ]


def test_old_files_failures_and_repetitions(tmp_path: Path) -> None:
    old = result("lora/x", LORA)
    old["train_info"]["cuda_memory_max"] = old["train_info"].pop("accelerator_memory_max")
    again = result("lora/x", LORA)
    again["run_info"]["created_at"] = "2025-07-01T00:00:00+00:00"
    failed = result("lora/y", LORA, seed=1)
    failed["train_info"] |= {"status": "failed", "metrics": []}
    failed["run_info"]["error_msg"] = "out of memory"
    cancelled = result("lora/y", LORA, seed=2)
    cancelled["train_info"] |= {"status": "canceled"}
    write(tmp_path, a=old, b=again, c=failed, d=cancelled, e=again)
    runs = read_peft_method_comparison(tmp_path).runs()
    assert runs["method"].tolist() == [
        "lora/x (2025-06-19T19:15:35+00:00)",
        "lora/x (b.json)",
        "lora/y",
        "lora/y",
        "lora/x (e.json)",
    ]
    assert runs["memory_bytes"].tolist() == [22_000] * 5
    assert runs["status"].tolist() == ["done", "done", "failed: out of memory", "failed: canceled", "done"]
    assert runs["test_accuracy"].isna().tolist() == [False, False, True, False, False]


def changed(part: str, key: str, value: object) -> dict[str, Any]:
    content = result("lora/x", dict(LORA))
    content[part][key] = value
    return content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ([1, 2], "is not a result"),
        ({"r": 8, "peft_type": "LORA"}, "is not a result"),
        ({"run_info": {}, "train_info": 3}, "is not a result"),
        (changed("run_info", "experiment_name", None), "is not a result"),
        (changed("run_info", "train_config", []), "is not a result"),
        (changed("run_info", "peft_config", "LORA"), "is not a result"),
        (changed("train_info", "status", None), "is not a result"),
        (changed("train_info", "metrics", [3]), "is not a result"),
        (changed("train_info", "metrics", []), "no test result"),
        (changed("run_info", "peft_config", {"rank_pattern": {"a": [1, 2]}}), "rank_pattern"),
        (changed("run_info", "peft_config", {"rank_pattern": {"a": True}}), "rank_pattern"),
    ],
)
def test_other_files_are_listed(folder: Path, content: object, why: str) -> None:
    write(folder, foreign=content)
    found = read_peft_method_comparison(folder)
    assert list(found.skipped) == [folder / "foreign.json"]
    assert why in found.skipped[folder / "foreign.json"]
    assert len(found.runs()) == 3


def test_bytes_that_are_no_text_are_listed(folder: Path) -> None:
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in read_peft_method_comparison(folder).skipped[folder / "binary.json"]


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no JSON file"):
        read_peft_method_comparison(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        read_peft_method_comparison(tmp_path / "none")
    write(tmp_path, a={"r": 8})
    with pytest.raises(UsageError, match=r"none|no result among 1 JSON file\(s\); a\.json"):
        read_peft_method_comparison(tmp_path)


def test_results_know_their_folder(folder: Path) -> None:
    found = read_peft_method_comparison(str(folder))
    assert isinstance(found, PeftResults)
    assert found.path == folder
