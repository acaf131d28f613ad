"""Merges an adapter into its base model, which plain transformers then loads."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from peftprune.adapters.formats.folder import read_json, read_tensors
from peftprune.adapters.formats.peft import CONFIG_FILE, read_peft
from peftprune.adapters.load import check_fits
from peftprune.adapters.save import TENSORS_FILE
from peftprune.errors import RunError, UsageError

TOLERANCE = 1e-4
"""For a float32 base: largest difference of outputs, as a share of the largest output or of 1, whichever is larger.
In narrower dtypes every weight is rounded once more: the difference is reported, not limited."""


class Merged(NamedTuple):
    """The stored `dtype`, the largest `difference` of outputs before and after merging, and the largest `output`."""

    dtype: str
    difference: float
    output: float


def adapted_model(folder: Path, base: nn.Module) -> nn.Module:
    """Returns the base model with an arm's stored adapter, or with the tensors that a baseline trained.

    Raises UsageError for files that are damaged or do not fit; the base is then unchanged.
    """
    if (folder / CONFIG_FILE).exists():
        if read_json(folder / CONFIG_FILE).get("peft_type") == "LORA":
            check_fits(read_peft(folder), base)
        # PEFT warns that it ignores the ranks of its own AdaLoRA, but applies them.
        with warnings.catch_warnings(action="ignore"):
            return PeftModel.from_pretrained(base, str(folder)).eval()
    tensors, _ = read_tensors(folder / TENSORS_FILE)
    state = base.state_dict()
    for name, tensor in tensors.items():
        if name not in state or state[name].shape != tensor.shape:
            problem = f"holds {name} {tuple(tensor.shape)}, which does not fit the model"
            raise UsageError.of("adapter", str(folder), problem, "Give the base model that it was trained on")
    base.load_state_dict(tensors, strict=False)
    return base.eval()


def write_merged(
    adapted: nn.Module, tokenizer: Any, folder: Path, dtype: torch.dtype, reload: Callable[[Path], nn.Module]
) -> Merged:
    """Merges in float32, rounds once to the dtype of the stored base, saves, reads back and compares outputs.

    `adapted` is in float32 and merged in place; `dtype` is that of the stored base; `reload` loads a saved folder in
    the dtype it holds. Raises RunError if outputs are not finite, or differ by more than rounding.
    """
    batch = fixed_batch((adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted).config)
    before = outputs(adapted, batch)
    try:
        merged: Any = adapted.merge_and_unload(safe_merge=True) if isinstance(adapted, PeftModel) else adapted
    except (AttributeError, NotImplementedError) as error:
        kind = adapted.active_peft_config.peft_type.value if isinstance(adapted, PeftModel) else None
        raise UsageError.of("format", "merged", f"is not possible for {kind} in PEFT", "Use peft") from error
    except ValueError as error:  # PEFT checks every merged weight
        raise RunError(f"merged: {error} The adapter's factors are not finite or too large; train it again") from None
    merged.to(dtype).save_pretrained(str(folder))
    _write_labels(merged, folder / "config.json")
    tokenizer.save_pretrained(str(folder))
    after = outputs(reload(folder), batch)
    if not bool(torch.isfinite(after).all()):
        raise RunError("merged: the model's outputs are not finite. Export the adapter in the format peft instead")
    difference, largest = float((after - before).abs().max()), float(before.abs().max())
    if dtype == torch.float32 and difference > TOLERANCE * max(1.0, largest):
        raise RunError(
            f"merged: the outputs differ by {difference:.2g} from the adapter's, which is more than rounding. "
            "Export the adapter in the format peft instead"
        )
    return Merged(str(dtype).removeprefix("torch."), difference, largest)


def _write_labels(model: Any, file: Path) -> None:
    """Writes the labels explicitly: transformers leaves out the default two, but BART's default is three."""
    if "Classification" in type(model).__name__:
        names = model.config.id2label
        labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
        file.write_text(json.dumps(json.loads(file.read_text()) | labels, indent=2, sort_keys=True) + "\n")


def fixed_batch(config: Any, rows: int = 4, length: int = 16) -> dict[str, Tensor]:
    """Returns the batch on which outputs are compared: fixed random token ids, each row ending in the end token.

    It is `input_ids` and `attention_mask`, (rows, length); encoder-decoders derive their decoder's input from them.
    """
    text = config.get_text_config()
    special = {getattr(text, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start", "sep")}
    flat = {i for item in special if item is not None for i in (item if isinstance(item, list) else [item])}
    usable = torch.tensor([i for i in range(text.vocab_size) if i not in flat])
    drawn = torch.rand(rows, length, generator=torch.Generator().manual_seed(0))
    ids = usable[(drawn * len(usable)).long()]
    if (end := getattr(text, "eos_token_id", None)) is not None:
        ids[:, -1] = end[0] if isinstance(end, list) else end
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Returns the logits in float32, in eval mode. The decoder of a generating encoder-decoder reads the same ids."""
    model.eval()
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if inner.config.is_encoder_decoder and "ForSequenceClassification" not in type(inner).__name__:
        batch = batch | {"decoder_input_ids": batch["input_ids"]}
    return model(**batch).logits.float()
