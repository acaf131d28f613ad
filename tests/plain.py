"""A plain script's ingredients: a PEFT model and a `Trainer`, made as their users make them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.helpers import texts, tokenizer

STEPS = 24


def examples(n: int = 70, seed: int = 1) -> list[dict[str, Any]]:
    """Tokenised texts with their classes, as the tiny task has them."""
    found, labels = texts(n, seed)
    encoded = tokenizer()(found, truncation=True, max_length=32)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    ]


def adapted(folder: Path, rank: int = 16, **options: Any) -> Any:
    """The tiny encoder with LoRA on query and value."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    given = {"task_type": "SEQ_CLS", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["query", "value"]}
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers has renamed.
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        return get_peft_model(model, LoraConfig(**(given | options)))


def arguments(output: Path, **changes: Any) -> TrainingArguments:
    """24 steps of 8 examples, nothing saved or reported."""
    given: dict[str, Any] = {
        "output_dir": str(output),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "seed": 0,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 4,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(given | changes))


def plain_trainer(
    model: Any, args: TrainingArguments, *callbacks: TrainerCallback, rows: Any = None, **options: Any
) -> Trainer:
    """A `Trainer` of those."""
    return Trainer(
        model=model,
        args=args,
        train_dataset=examples() if rows is None else rows,
        data_collator=DataCollatorWithPadding(tokenizer()),
        callbacks=list(callbacks),
        **options,
    )
