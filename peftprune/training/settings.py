"""Training settings: one set for all methods, with stated defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from peftprune.errors import UsageError
from peftprune.models.precision import BaseDtype, BaseForm, LoadIn
from peftprune.strategy.options import check_range, option
from peftprune.tasks.kinds import KINDS, Kind


def setting(default: Any, help: str, only: Kind | None = None, **declared: Any) -> Any:
    """Declares a setting as `option` does; `only` names the one kind of task that reads it."""
    return field(default=default, metadata={**option(default, help=help, **declared).metadata, "only": only})


@dataclass(frozen=True)
class TrainingSettings:
    """How every arm of a study is trained. Each field declares its default, meaning and range."""

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", gt=0)
    batch_size: int = setting(32, "examples per optimizer step", ge=1)
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step, at most batch_size", ge=1)
    epochs: float = setting(3.0, "passes over the training data where the budget sets no length of training", gt=0)
    warmup_ratio: float = setting(0.06, "share of each schedule segment that warms up", ge=0, lt=1)
    weight_decay: float = setting(0.01, "weight decay of AdamW; biases and gates have none", ge=0)
    max_grad_norm: float = setting(1.0, "norm to which gradients are clipped; 0 turns clipping off", ge=0)
    max_length: int = setting(256, "tokens per example, longer ones are truncated; in generation of the prompt", ge=2)
    scaling: float = setting(2.0, "factor on B A: alpha = scaling * rank", gt=0)
    lora_dropout: float = setting(0.0, "dropout probability on the adapters' input", ge=0, lt=1)
    max_train_samples: int | None = setting(None, "size of a fixed sample of the training set; None: all", ge=1)
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "number format of training (bfloat16 by autocast); auto: bfloat16 where the hardware multiplies it natively",
        choices=("auto", "float32", "bfloat16"),
    )
    checkpoints: int = setting(5, "number of checkpoints saved during a run", ge=0)
    select: Literal["last", "validation", "paper"] = setting(
        "last",
        "state to report: the last, or the best checkpoint on validation data or (paper) on the reported split itself",
        choices=("last", "validation", "paper"),
    )
    max_eval_samples: int | None = setting(None, "size of a fixed sample of each evaluation split; None: all", ge=2)
    max_target_length: int = setting(
        128, "tokens of a target in training, its end included; longer ones are truncated", "generation", ge=2
    )
    max_new_tokens: int | None = setting(
        None, "limit on the generated tokens; None: max_target_length", "generation", ge=1
    )
    num_beams: int = setting(1, "1 is greedy decoding, more is beam search", "generation", ge=1)
    prompt: str | None = setting(
        None,
        "what the model reads, with {source} for the source text; None: the task's own prompt for decoders, the source "
        "alone for encoder-decoders",
        "generation",
    )
    base_dtype: BaseDtype | None = setting(
        None, "dtype of the frozen weights, None: float32; adapters and head stay float32", choices=get_args(BaseDtype)
    )
    load_in: LoadIn | None = setting(
        None, "quantises the frozen linear layers with bitsandbytes", choices=get_args(LoadIn)
    )
    device_map: str | None = setting(None, "placement of the base model, as transformers takes it; None: one device")

    def __post_init__(self) -> None:
        for declared in fields(self):
            value = getattr(self, declared.name)
            check_range("", declared.name, value, declared)
            # 2 epochs and 2.0 epochs are the same request, and must have the same hash.
            if declared.type == "float":
                object.__setattr__(self, declared.name, float(value))
        if self.prompt is not None and self.prompt.count("{source}") != 1:
            cure = 'Write "Summarise: {source}", for example'
            raise UsageError.of("prompt", self.prompt, "does not hold {source} once", cure)
        if self.select != "last" and not self.checkpoints:
            raise UsageError.of("select", self.select, "has no checkpoints to choose from", "Set checkpoints to 1")
        if self.gradient_accumulation_steps > self.batch_size:
            problem = f"is above batch_size ({self.batch_size})"
            cure = "batch_size counts the examples of a whole optimizer step"
            raise UsageError.of("gradient_accumulation_steps", self.gradient_accumulation_steps, problem, cure)

    @property
    def base_form(self) -> BaseForm:
        return BaseForm(self.base_dtype or "float32", self.load_in, self.device_map)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self, kind: str) -> dict[str, Any]:
        """Returns the settings that decide the result of a task of this kind, apart from the number format.

        Settings of other kinds of task are left out, and so are unset ones that earlier versions did not have: the
        hashes of their arms stay.
        """
        # Where the weights lie depends on the machine, which an arm's identity holds apart.
        ignored = {"dtype", "device_map", *settings_of_other_kinds(kind)}
        # Checkpoints are what is selected from.
        ignored |= {"checkpoints", "select"} if self.select == "last" else set()
        ignored |= {n for n in ("max_eval_samples", "base_dtype", "load_in") if getattr(self, n) is None}
        return {name: value for name, value in self.as_dict().items() if name not in ignored}


WHOLE = {f.name for f in fields(TrainingSettings) if str(f.type).startswith("int")}
"""Settings that are whole numbers."""
NUMBERS = WHOLE | {f.name for f in fields(TrainingSettings) if f.type == "float"}
"""Settings that are numbers."""


def settings_of_other_kinds(kind: str) -> set[str]:
    """Returns the settings that a task of this kind does not read."""
    return {f.name for f in fields(TrainingSettings) if f.metadata["only"] not in (None, KINDS[kind].name)}


def resolve_settings(given: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> TrainingSettings:
    """Returns the defaults, overridden by the paper's settings (under `budget="paper"`) and by the user's.

    `given` are the user's; None values count as not given. `published` are those of `PaperSettings.published`, of which
    searched values do not count. Raises UsageError for unknown names or values out of range.
    """
    known = {f.name for f in fields(TrainingSettings)}
    if (unknown := next((name for name in given if name not in known), None)) is not None:
        raise UsageError.of("setting", unknown, "does not exist", f"Settings: {', '.join(sorted(known))}")
    stated = {n: v for n, v in (published or {}).items() if n in known and not isinstance(v, tuple)}
    return replace(TrainingSettings(), **{k: v for layer in (stated, given) for k, v in layer.items() if v is not None})
