"""Training settings that authors released, by base model and task, for `PaperSettings.runs`.

`batch_size` counts the examples of an optimizer step: those per device, times the devices and accumulation steps that a
script names. Runs that continue an adapter trained on MNLI are left out: nothing here can continue one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftprune.strategy.spec import Published
from peftprune.tasks.glue import GLUE

Runs = dict[tuple[str, str], Published]
_DEBERTA = "deberta-v3-base"


def _run(
    source: str, batch_size: int, learning_rate: Any, epochs: float, max_length: int | None, note: str = "", **more: Any
) -> Published:
    values = {"batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs, "max_length": max_length}
    return Published(source, {k: v for k, v in (values | more).items() if v is not None}, note)


def _warmup(task: str, batch_size: int, epochs: float, steps: float) -> float:
    """Returns the share of the run that warms up; a number of 1 or more counts steps, one below 1 is a share."""
    return steps if steps < 1 else round(steps / (epochs * -(-GLUE[task].train_size // batch_size)), 4)


def _glue(repository: str, folder: str, batch_size: int, rows: Mapping[str, tuple[Any, ...]], **shared: Any) -> Runs:
    """Returns runs on DeBERTaV3-base; a row is script, rate, epochs, warm-up, length, decay, and what else it sets."""
    found = {}
    for task, (script, rate, epochs, warmup, length, decay, *rest) in rows.items():
        more = {"warmup_ratio": _warmup(task, batch_size, epochs, warmup), "weight_decay": decay}
        more |= shared | (rest[0] if rest else {})
        found[_DEBERTA, task] = _run(f"{repository} {folder}{script}", batch_size, rate, epochs, length, **more)
    return found


_ADALORA = "QingruZhang/AdaLoRA@d10f5eb"
_WARM = "warm-up: 3,000 steps, whose share depends on the number of examples"

ADALORA: Runs = _glue(_ADALORA, "NLU/scripts/run_debertav3_", 32, {
    "mnli": ("mnli.sh", 5e-4, 7, 1000, 256, 0.0),
    "sst2": ("sst2.sh", 8e-4, 24, 1000, 128, 0.01),
    "mrpc": ("mrpc.sh", 1e-3, 30, 0.1, 320, 0.01),
    "cola": ("cola.sh", 8e-4, 25, 100, 64, 0.0),
    "qnli": ("qnli.sh", 5e-4, 5, 500, 512, 0.01),
    "qqp": ("qqp.sh", 8e-4, 5, 2000, 320, 0.01),
    "rte": ("rte.sh", 1.2e-3, 50, 200, 320, 0.01),
    "stsb": ("stsb.sh", 2.2e-3, 25, 100, 128, 0.1),
}) | {
    ("bart-large", "xsum"): _run(
        f"{_ADALORA} NLG_QA/scripts/run_bart_xsum.sh", 64, 5e-4, 25, 768, _WARM, max_target_length=64, num_beams=8
    ),
    ("bart-large", "cnn_dailymail"): _run(
        f"{_ADALORA} NLG_QA/scripts/run_bart_cnndailymail.sh", 32, 5e-4, 15, 1024, _WARM,
        rank=2, max_target_length=160, num_beams=4,
    ),
}  # fmt: skip
"""All linear layers, a linear schedule. The GLUE scripts name a target rank of 1."""

_INCRELORA = "FeiyuZhang98/IncreLoRA@51a2d73"
_DROP = {"lora_dropout": 0.3}

INCRELORA: Runs = _glue(_INCRELORA, "NLU/scripts/", 32, {
    "mnli": ("rank=8/run_mnli.sh", 5e-4, 7, 1000, 256, 0.0),
    "sst2": ("rank=8/run_sst2.sh", 8e-4, 24, 1000, 128, 0.01, _DROP),
    "mrpc": ("rank=8/run_mrpc.sh", 1e-3, 30, 100, 320, 0.01, _DROP),
    "cola": ("rank=8/run_cola.sh", 1e-3, 25, 100, 64, 0.0),
    "qnli": ("rank=8/run_qnli.sh", 9e-4, 5, 500, 512, 0.01),
    "qqp": ("rank=8/run_qqp.sh", 6e-4, 7, 1000, 320, 0.01),
    "rte": ("rank=8/run_rte.sh", 1.2e-3, 50, 100, 320, 0.01),
    "stsb": ("rank=2/run_stsb.sh", 2.2e-3, 25, 100, 128, 0.1, {"rank": 2}),
}) | {
    ("bart-large", "xsum"): _run(
        f"{_INCRELORA} NLG_QA/scripts/run_bart_xsum.sh", 8, 5e-4, 35, 768, _WARM,
        rank=2, lora_dropout=0.0, max_target_length=64, num_beams=8,
    )
}  # fmt: skip
"""All linear layers, a linear schedule."""

_ELALORA = "HuandongChang/ElaLoRA@3865a37"

ELALORA: Runs = _glue(_ELALORA, "NLU/scripts/run_debertav3_", 64, {
    "mnli": ("mnli.sh", 5e-4, 1, 1000, 256, 0.0),
    "sst2": ("sst2.sh", 8e-4, 20, 1000, 256, 0.0),
    "mrpc": ("mrpc.sh", 1e-3, 20, 1000, 512, 0.0),
    "cola": ("cola.sh", 8e-4, 20, 1000, 256, 0.0),
    "qnli": ("qnli.sh", 5e-4, 5, 1000, 256, 0.0, {"rank": 2, "scaling": 8.0}),
    "rte": ("rte.sh", 1.2e-3, 50, 1000, 256, 0.0),
}, rank=10, scaling=1.6) | {
    ("bart-base", "xsum"): _run(
        f"{_ELALORA} NLG_QA/scripts/run_bart_xsum.sh", 32, 5e-4, 8, 1024,
        rank=6, scaling=2.6667, max_target_length=160, num_beams=8,
    )
}  # fmt: skip
"""All linear layers. Scaling is alpha (16) over the first rank."""

_SORA = "TsinghuaC3I/SoRA@c275ac2"

SORA: Runs = {
    (_DEBERTA, "stsb"): _run(
        f"{_SORA} scripts/run_glue_sora_no_schedule.sh", 8, 8e-4, 20, 128,
        warmup_ratio=0.06, weight_decay=0.1, max_grad_norm=0.1,
    )
}  # fmt: skip
"""The script for RTE raises the threshold over several runs, which is not offered."""

_WEIGHTLORA = "Vepricov/Weight_Lora@56ce27b glue_experiment/tuned_params.json and scripts/run_weight_lora_glue.sh"
_RATES = {"cola": 5e-4, "mnli": 1e-3, "mrpc": 5e-4, "qnli": 1e-3, "qqp": 1e-3, "rte": 8e-4, "sst2": 1e-3, "stsb": 8e-4}

WEIGHTLORA: Runs = {
    (_DEBERTA, task): _run(
        _WEIGHTLORA, 192, rate, round(512 / -(-GLUE[task].train_size // 192), 4), None,
        scaling=4.0, warmup_ratio=0.1953, lora_dropout=0.05,
    )
    for task, rate in _RATES.items()
}  # fmt: skip
"""512 steps, of which 100 warm up, on every task; scaling is 32 / 8."""

_ROBERTA: dict[str, Any] = {"warmup_ratio": 0.06, "weight_decay": 0.1}


def _base_tasks(source: str) -> Runs:
    """Returns the runs on RoBERTa-base of LoRA's scripts, which DyLoRA's repeat."""
    rows = {"mnli": (128, 5e-4, 30), "cola": (64, 4e-4, 80), "qnli": (256, 4e-4, 25), "qqp": (128, 5e-4, 25)}
    rows["sst2"] = 128, 5e-4, 60
    return {
        ("roberta-base", task): _run(f"{source}/roberta_base_{task}.sh", *row, 512, scaling=2.0, **_ROBERTA)
        for task, row in rows.items()
    }


_LORA = "microsoft/LoRA@c4593f0 examples/NLU"

LORA: Runs = _base_tasks(_LORA) | {
    ("roberta-large", task): _run(f"{_LORA}/roberta_large_{task}.sh", *row, scaling=2.0, **_ROBERTA)
    for task, row in {
        "mnli": (32, 3e-4, 10, 128),
        "cola": (32, 3e-4, 20, 128),
        "qnli": (32, 2e-4, 10, 512),
        "qqp": (32, 3e-4, 20, 512),
        "sst2": (64, 4e-4, 10, 512),
    }.items()
}
"""Query and value; two devices for CoLA on the base model, else eight. MRPC, RTE and STS-B continue MNLI adapters."""

DYLORA: Runs = _base_tasks("huawei-noah/Efficient-NLP@bb44348 DyLoRA/examples/NLU")
"""As LoRA's."""

_LORPA = "JuHyng/LoRPA@8922807 run_scripts/lorpa/run_"
_STAGES = "warm-up: 500 steps in each of the two stages, which no single share states"


def _lorpa(model: str, rows: Mapping[str, tuple[Any, ...]]) -> Runs:
    return {
        (model, task): _run(f"{_LORPA}{task}_{model}.sh", *row[:4], **{"scaling": 1.0} | _ROBERTA | dict(row[4:]))
        for task, row in rows.items()
    }


LORPA: Runs = (
    _lorpa("roberta-base", {
        "mnli": (16, 3e-4, 30, 512),
        "sst2": (16, 6e-5, 60, 512),
        "mrpc": (16, 4e-4, 30, 512),
        "cola": (32, 4e-4, 80, 512),
        "qnli": (32, 4e-4, 25, 512),
        "qqp": (16, 5e-4, 25, 512),
        "rte": (32, (3e-5, 5e-5, 7e-5, 9e-5), 80, 512),
        "stsb": (16, (2e-4, 3e-4, 4e-4), 40, 512),
    })
    | _lorpa("roberta-large", {
        "mnli": (4, 4e-5, 10, 128),
        "sst2": (4, 2e-5, 10, 128),
        "mrpc": (4, 1e-4, 20, 512),
        "cola": (4, 2e-4, 20, 128, ("scaling", 2.0)),
        "qnli": (4, 6e-5, 10, 512),
        "qqp": (4, 3e-4, 20, 512),
        "rte": (8, (1e-4, 2e-4, 3e-4), 20, 512),
        "stsb": (8, 3e-4, 30, 512),
    })
    | {
        (model, task): _run(
            f"{_LORPA}{script}_{model}.sh", batch, 2e-4, 25, source, _STAGES, rank=16, scaling=scaling,
            weight_decay=0.01, lora_dropout=0.05, max_target_length=target, max_new_tokens=target,
        )
        for model, batch, scaling in (("bart-base", 256, 1.0), ("bart-large", 64, 2.0))
        for task, script, source, target in (("xsum", "xsum", 960, 64), ("cnn_dailymail", "cnn_dm", 1024, 128))
    }
)  # fmt: skip
"""Query and value. Scaling is alpha / rank of the first stage, which stays in force. The scripts search some rates."""
