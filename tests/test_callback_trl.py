"""TRL's `SFTTrainer` gains the methods by the same line; activation checkpointing is on by default there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import peftprune
from peftprune import PruningCallback
from tests.helpers import same, texts, tokenizer

trl = pytest.importorskip("trl", reason="trl is not installed; the extra trl has it")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of two layers over the tiny tokenizer's words."""
    folder, made = tmp_path_factory.mktemp("llama"), tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(made), num_key_value_heads=2, **sizes)).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def sft(model: Path, output: Path, *callbacks: Any, **changes: Any) -> Any:
    """Supervised fine-tuning as in TRL's own examples."""
    torch.manual_seed(0)
    args = trl.SFTConfig(
        output_dir=str(output), max_steps=12, per_device_train_batch_size=4, learning_rate=5e-3, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True, max_length=32, dataloader_pin_memory=False,
        **({"bf16": False} | changes),
    )  # fmt: skip
    return trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=args,
        train_dataset=datasets.Dataset.from_dict({"text": texts(40, 1)[0]}),
        processing_class=tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize(
    "method",
    ["lorpa", pytest.param("prilora(prune_every=5)", marks=pytest.mark.slow), "lora-drop(sample=0.3,probe_passes=1)"],
)
def test_supervised_fine_tuning_gains_a_method_by_one_line(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    callback = PruningCallback(method, budget="rank=4")
    trainer = sft(tiny_llama, tmp_path, callback, bf16="lora" in method)
    assert trainer.args.gradient_checkpointing
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    ledger = callback.ledger
    assert ledger.final_params <= callback.summary()["params_allowed"] == 4 * 2 * (64 + 48)
    assert ledger.steps == 12
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(tmp_path / "adapter"))
    assert same(get_peft_model_state_dict(loaded), get_peft_model_state_dict(trainer.model))


def test_its_dataset_is_served_in_our_order_too(tiny_llama: Path, tmp_path: Path) -> None:
    callback = PruningCallback("lora-drop(sample=0.3,probe_passes=1)", budget="rank=4", seed=0)
    trainer = sft(tiny_llama, tmp_path, callback)
    trainer.train_dataset = peftprune.sampler(trainer.train_dataset)
    trainer.train()
    # 40 examples in 10 steps; a sample of 12 in three, once for the probe and once for the scores.
    assert callback.ledger.samples == 2 * 12 + 6 * 4
    assert callback.ledger.forward_only_samples == 12
