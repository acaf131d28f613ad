"""Training settings: one set for all methods, with stated defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import Any, Literal, get_args

from peftprune.errors import UsageError
from peftprune.models.precision import BaseDtype, BaseForm, LoadIn
from peftprune.strategy.spec import PaperSettings
from peftprune.tasks.kinds import KINDS


@dataclass(frozen=True)
class TrainingSettings:
    """How every arm of a study is trained.

    Attributes:
        learning_rate: peak rate of AdamW, above 0.
        batch_size: examples per optimizer step, at least 1.
        gradient_accumulation_steps: micro-batches that a step is split into, 1 to `batch_size`.
        epochs: passes over the training data, where the budget does not say.
        warmup_ratio: share of each schedule segment that warms up, in [0, 1).
        weight_decay: AdamW's, at least 0; biases and gates have none.
        max_grad_norm: gradients are clipped to this norm; 0 turns clipping off.
        max_length: tokens of an example, both texts together; longer ones are cut. Of the prompt in generation.
        scaling: factor on B A (alpha = scaling · rank), above 0.
        lora_dropout: dropout on the adapters' input, in [0, 1).
        max_train_samples: use a fixed random sample of the training set; None uses all.
        dtype: "float32", "bfloat16" (autocast), or "auto": bfloat16 where the hardware multiplies it natively.
        checkpoints: how many times a run is saved on its way, at least 0.
        max_eval_samples: evaluate a fixed random sample of each evaluation split; None evaluates all.
        max_target_length: generation: tokens of a target in training, its end included; longer ones are cut.
        max_new_tokens: generation: tokens written at most at evaluation; None takes `max_target_length`.
        num_beams: generation: 1 is greedy, more is beam search.
        prompt: generation: what the model reads, with "{source}" for the source text; None takes the task's own for
            decoders and the source alone for encoder-decoders.
        base_dtype: number format in which the frozen weights are held; None is float32. Adapters and head stay float32.
        load_in: "8bit" or "4bit": quantise the frozen linear layers with bitsandbytes; None leaves them as they are.
        device_map: where the base model is placed, as transformers takes it ("auto"); None: on the one device.
    """

    learning_rate: float = 1e-3
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    epochs: float = 3.0
    warmup_ratio: float = 0.06
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 256
    scaling: float = 2.0
    lora_dropout: float = 0.0
    max_train_samples: int | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoints: int = 5
    max_eval_samples: int | None = None
    max_target_length: int = 128
    max_new_tokens: int | None = None
    num_beams: int = 1
    prompt: str | None = None
    base_dtype: BaseDtype | None = None
    load_in: LoadIn | None = None
    device_map: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # 2 epochs and 2.0 epochs are the same request, and must have the same hash.
            if isinstance(field.default, float) and isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value))
        for name in NUMBERS:
            value = getattr(self, name)
            optional = name in _OPTIONAL and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value)):
                raise UsageError.of(name, value, "is no number", "Give a finite number")
        for name, least in WHOLE.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not isinstance(value, int) or value < least:
                nothing = ", or nothing" if name in _OPTIONAL else ""
                raise UsageError.of(name, value, f"is no whole number from {least}", f"Give {least} or more{nothing}")
        if self.prompt is not None and (not isinstance(self.prompt, str) or self.prompt.count("{source}") != 1):
            raise UsageError.of(
                "prompt", self.prompt, "does not hold {source} once", 'Write "Summarise: {source}", for example'
            )
        for name in ("learning_rate", "epochs", "scaling"):
            if not getattr(self, name) > 0:
                raise UsageError.of(name, getattr(self, name), "is not positive", "Give a number above 0")
        for name in ("weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise UsageError.of(name, getattr(self, name), "is negative", "Give 0 or more")
        for name in ("warmup_ratio", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError.of(name, getattr(self, name), "is outside [0, 1)", "Give 0.06, for example")
        for name, choices in (("base_dtype", get_args(BaseDtype)), ("load_in", get_args(LoadIn))):
            if getattr(self, name) not in (None, *choices):
                cure = f"Give one of {', '.join(choices)}, or nothing"
                raise UsageError.of(name, getattr(self, name), "is not supported", cure)
        if self.device_map is not None and not isinstance(self.device_map, str):
            raise UsageError.of("device_map", self.device_map, "is no text", 'Give "auto", for example')
        if self.gradient_accumulation_steps > self.batch_size:
            raise UsageError.of(
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps,
                f"is above batch_size ({self.batch_size})",
                "batch_size counts the examples of a whole optimizer step",
            )

    @property
    def base_form(self) -> BaseForm:
        """How the base model is held."""
        return BaseForm(self.base_dtype or "float32", self.load_in, self.device_map)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def identity(self, kind: str) -> dict[str, Any]:
        """What of the settings decides the result of a task of this kind, beside the number format.

        Settings of generation say nothing of other tasks, and those that came later nothing where they are not given.
        """
        ignored = {"dtype", "checkpoints", *settings_of_other_kinds(kind)}
        # Where the weights lie is the machine's matter, which an arm's identity holds apart.
        ignored |= {"device_map", *(n for n in _LATER if getattr(self, n) is None)}
        return {name: value for name, value in self.as_dict().items() if name not in ignored}


WHOLE = {
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_length": 2,
    "checkpoints": 0,
    "max_train_samples": 1,
    "max_eval_samples": 2,
    "max_target_length": 2,
    "max_new_tokens": 1,
    "num_beams": 1,
}
"""Settings that are whole numbers, with their least values."""

_GENERATION = {"max_target_length", "max_new_tokens", "num_beams", "prompt"}

_LATER = ("max_eval_samples", "base_dtype", "load_in")
_OPTIONAL = ("max_train_samples", "max_eval_samples", "max_new_tokens", "prompt")
NUMBERS = {f.name for f in fields(TrainingSettings)} - {"dtype", "prompt", "base_dtype", "load_in", "device_map"}
"""Settings that are numbers, where they are given."""


def settings_of_other_kinds(kind: str) -> set[str]:
    """Returns the settings that a task of this kind does not read."""
    return set() if KINDS[kind].writes_text else _GENERATION


def resolve_settings(given: Mapping[str, Any], paper: PaperSettings | None = None, task: str = "") -> TrainingSettings:
    """Defaults, then the paper's own settings (under `budget="paper"`), then what the user gave.

    Args:
        given: settings the user named; None values count as not given.
        paper: the method's published setting, or None in a matched comparison.
        task: the task's name, for settings that the paper has per task.

    Raises:
        UsageError: for unknown names or values out of range.
    """
    known = {f.name for f in fields(TrainingSettings)}
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise UsageError.of("setting", unknown, "does not exist", f"Settings: {', '.join(sorted(known))}")
    published: dict[str, Any] = {}
    if paper is not None:
        published = {n: getattr(paper, n) for n in ("scaling", "weight_decay", "warmup_ratio")}
        published |= paper.per_task.get(task, {})
    values = {k: v for layer in (published, given) for k, v in layer.items() if v is not None}
    return replace(TrainingSettings(), **values)
