"""Loads the base model that an arm was trained on."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from peftprune.adapters.formats.folder import read_json
from peftprune.adapters.formats.peft import CONFIG_FILE
from peftprune.errors import UsageError
from peftprune.models.load import load_model
from peftprune.models.precision import BaseForm
from peftprune.models.quiet import quiet_loading
from peftprune.report.export.choose import Chosen
from peftprune.study.paths import located
from peftprune.tasks.kinds import KINDS


@dataclass(frozen=True)
class Base:
    """A base model in float32 with the head that its task needs, not shared with other code.

    `dtype` is that of the stored weights, `auto` the transformers class that loads the model, and `reload` loads a
    saved folder in its stored dtype.
    """

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    auto: Any
    reload: Callable[[Path], nn.Module]


def auto_class(chosen: Chosen) -> Any:
    file = chosen.folder.adapter / CONFIG_FILE
    kind = read_json(file).get("task_type") if file.exists() else None
    names = {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM"}
    return getattr(transformers, names.get(str(kind), "AutoModelForSequenceClassification"))


def num_labels(chosen: Chosen) -> int | None:
    """Returns the number of outputs of the arm's head; None for models that generate."""
    if KINDS[chosen.cell.request["tasks"][0]["kind"]].writes_text:
        return None
    return len(chosen.folder.read_predictions()["logits"].iloc[0])


def load_base(chosen: Chosen) -> Base:
    """Loads the base model and checks that it is the one that the arm was trained on.

    Raises UsageError if it cannot be loaded, or is a different one.
    """
    name, kind = located(chosen.cell.request, chosen.cell.path)["model"], chosen.cell.request["tasks"][0]["kind"]
    auto, labels = auto_class(chosen), num_labels(chosen)
    settings: dict[str, Any] = chosen.result["settings"]
    held = BaseForm(settings.get("base_dtype") or "float32", settings.get("load_in"))
    expected = chosen.result["meta_info"]["model_info"]["sha"]
    if load_model(name, labels or 0, kind, held).fingerprint != expected:
        problem = "is not the base model that the arm was trained on: its weights or configuration have changed"
        raise UsageError.of("model", name, problem, "Restore it, or use the format peft, which does not need it")
    loaded = load_model(name, labels or 0, kind)
    arguments: dict[str, Any] = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    dtype = torch.float32
    # A folder without a configuration holds a GGUF file, whose weights have no torch dtype.
    if not Path(loaded.source).is_dir() or (Path(loaded.source) / "config.json").is_file():
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            dtype = auto.from_pretrained(loaded.source, dtype="auto", **arguments).dtype

    if names := chosen.cell.request["tasks"][0].get("label_names"):
        loaded.model.config.id2label = dict(enumerate(names))

    def reload(folder: Path) -> nn.Module:
        found: nn.Module = auto.from_pretrained(folder, dtype="auto")
        return found

    return Base(copy.deepcopy(loaded.model).eval(), loaded.tokenizer, dtype, auto, reload)
