"""Load a base model by name: its shape alone (`describe`), or with weights and tokenizer (`load_model`).

`peftprune.models.find` says what a name may be. Generation tasks take the model with its language-model head, other
tasks one with a fresh task head.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError
from peftprune.models.bundled import bundled_names
from peftprune.models.find import Weights, find_weights, first_line, read_config
from peftprune.models.head import auto_class
from peftprune.models.layers import head_modules, language_model_head
from peftprune.models.precision import BaseForm, keep_head_exact
from peftprune.models.quiet import quiet_loading
from peftprune.strategy.lazy import torch, transformers
from peftprune.tasks.kinds import KINDS, Kind


@dataclass(frozen=True)
class LoadedModel:
    """A pre-trained model, with a fresh task head where it does not generate.

    It is shared by all callers in the process: copy before changing. The model is in eval mode, float32 and on the CPU
    by default; its `config.problem_type` is unset, since the caller computes the loss. The tokenizer has a padding
    token. `fingerprint` is the SHA-256 (hex) of the configuration and the pre-trained tensors, without the head;
    `source` is the folder or the hub name of the weights; `untrained` names the parameters outside the head that the
    checkpoint lacks, so that they are random, such as the pooler of a BERT saved from a masked language model.
    """

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str
    source: str
    untrained: tuple[str, ...] = ()


def describe(model: str | Path, num_labels: int = 2, kind: Kind = "classification") -> Any:
    """Returns the model for a kind of task on the meta device: all names and shapes, no weights.

    `model` is a folder, configuration file, bundled name or hub name. `num_labels` counts the outputs of the task head
    and is ignored for generation. Raises UsageError for a name that leads nowhere, and a model without such a head.
    """
    with quiet_loading():
        config = read_config(model)
        config.num_labels = _checked_labels(num_labels)
        auto = auto_class(model, config, KINDS[kind].writes_text)
        with torch.device("meta"):
            try:
                return auto.from_config(config)
            except Exception as error:
                cure = f"Its configuration is inconsistent ({first_line(error)})"
                raise UsageError.of("model", str(model), "cannot be built", cure) from error


def load_model(
    name: str | Path, num_labels: int = 2, kind: Kind = "classification", form: BaseForm = BaseForm()
) -> LoadedModel:
    """Loads weights and tokenizer, once per process and combination of arguments.

    The head is initialised by transformers from a fixed seed; the global random state stays as it is. Use
    `initialise_head` to draw it anew. `name` is a folder, bundled name or hub name, `num_labels` and `kind` are as in
    `describe`, and `form` is the number format, quantisation and placement of the weights.

    Raises UsageError where the model cannot be found or read, lacks weights or a padding token, or has no head for this
    kind of task.
    """
    if kind not in KINDS:
        raise UsageError.of("kind", kind, "is not a kind of task", f"Use one of {', '.join(KINDS)}")
    writes_text = KINDS[kind].writes_text
    if not writes_text and not KINDS[kind].fits(_checked_labels(num_labels)):
        cure = "Regression has 1, classification 2 or more"
        raise UsageError.of("num_labels", num_labels, f"does not fit {kind}", cure)
    place = os.path.abspath(os.path.expanduser(name)) if isinstance(name, Path) else name
    return _load_cached(place, None if writes_text else num_labels, form)


@lru_cache(maxsize=4)
@quiet_loading()
def _load_cached(name: str, num_labels: int | None, form: BaseForm) -> LoadedModel:
    """`num_labels` is None for the language-model head."""
    auto = auto_class(name, read_config(name), writes_text=num_labels is None)
    weights = find_weights(name)
    head = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    held = form.arguments() | head
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights.source, **weights.arguments)
        # transformers draws the head from the global random state: a fixed one is set for as long.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            # A head of another width may be in the checkpoint; other tensors of another shape are refused.
            model, report = auto.from_pretrained(weights.source, output_loading_info=True, **held, **weights.arguments)
    except Exception as error:
        raise _cannot_load(name, weights, error) from error
    untrained = _untrained(name, model, report)
    model.config.problem_type = None
    if form != BaseForm():
        keep_head_exact(model, head_modules(model))
    if "gguf_file" in weights.arguments:
        # The weights are floats by now. The Trainer would refuse a model that says it is quantised.
        model.hf_quantizer.remove_quantization_config(model)
    _ensure_padding(name, tokenizer, model.config)
    return LoadedModel(name, model.eval(), tokenizer, _fingerprint(model), weights.source, untrained)


def _cannot_load(name: str, weights: Weights, error: Exception) -> UsageError:
    reason = first_line(error)
    if weights.folder is not None:
        cure = f"The folder must hold config.json, model.safetensors and the tokenizer's files ({reason})"
        return UsageError.of("model", name, f"cannot be loaded from {weights.source}", cure)
    if name in bundled_names():
        cure = f"Weights need the hub ({weights.source}: {reason}) or the path of a folder that holds them"
        return UsageError.of("model", name, "is only bundled as a shape for planning", cure)
    return UsageError.of("model", name, "cannot be loaded from the hub", f"Check name, access and network ({reason})")


def _untrained(name: str, model: Any, report: dict[str, Any]) -> tuple[str, ...]:
    """Returns the parameters outside the head that the checkpoint lacks. Refuses missing or ill-fitting blocks."""
    heads = tuple(f"{head}." for head in head_modules(model))
    mismatched = sorted(item[0] for item in report["mismatched_keys"] if not item[0].startswith(heads))
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(heads))
    if mismatched:
        cure = "config.json and the weights belong to different models"
        raise UsageError.of("model", name, f"has a weight of another shape than configured: {mismatched[0]}", cure)
    names = {key for key, _ in model.named_parameters() if not key.startswith(heads)}
    output = language_model_head(model)
    parameters = dict(model.named_parameters())
    random = next((k for k in missing if output is not None and parameters.get(k) is output.weight), None)
    if random is not None:
        cure = "Give a checkpoint that was saved with its language-model head"
        raise UsageError.of("model", name, f"lacks its language-model head ({random})", cure)
    # A pooler may be absent; one tenth is far more than any pooler and far less than a wrong checkpoint lacks.
    if len(names.intersection(missing)) > len(names) / 10:
        problem = f"lacks {len(missing)} of its {len(names)} weights, {missing[0]} among them"
        raise UsageError.of("model", name, problem, "Give a checkpoint that was saved from this type of model")
    return tuple(missing)


def _ensure_padding(name: str, tokenizer: Any, config: Any) -> None:
    """Gives a tokenizer without a padding token its end token; padding is masked anyway."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            cure = "Add a pad_token to the files of the tokenizer"
            raise UsageError.of("model", name, "has a tokenizer with neither padding nor end token", cure)
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


def _fingerprint(model: Any) -> str:
    """Returns the SHA-256 of what was pre-trained, whatever its storage, number of labels and head."""
    volatile = {"transformers_version", "_name_or_path", "id2label", "label2id", "num_labels", "dtype", "architectures"}
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in volatile}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    heads = tuple(f"{head}." for head in head_modules(model))
    for key, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor) and not key.startswith(heads):
            digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checked_labels(num_labels: int) -> int:
    if num_labels < 1:
        raise UsageError.of("num_labels", num_labels, "is too small", "Give at least 1")
    return num_labels
