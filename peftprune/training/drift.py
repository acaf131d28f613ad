"""How far an arm moved its model on `drift.txt`, a text that no arm trains on."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from peftprune.models.layers import language_model_head
from peftprune.models.load import LoadedModel


def drift(trainer: Trainer, given: LoadedModel) -> float | None:
    """Returns 0 for a model that reads the text as it did before training; None for one that cannot read it.

    For a model that generates, this is the rise of the cross-entropy per token; for others, 1 minus the mean cosine of
    a line's hidden states, averaged over its tokens in the last layer.
    """
    trained: Any = trainer.model
    with torch.no_grad(), trainer.accelerator.autocast(), contextlib.suppress(Exception):
        now = _read(trained.eval(), given)
        if isinstance(trained, PeftModel):
            with trained.disable_adapter():
                before = _read(trained, given)
        else:
            before = _read(given.model.to(trained.device), given)
        return float((1 - nn.functional.cosine_similarity(now, before)).mean() if now.dim() else now - before)
    return None


def _read(model: Any, given: LoadedModel) -> Tensor:
    """Returns the cross-entropy per token, or the mean hidden state of each line, (lines, width), in doubles."""
    lines = Path(__file__).with_suffix(".txt").read_text("utf-8").splitlines()
    batch = given.tokenizer(lines, padding=True, truncation=True, max_length=32, return_tensors="pt")
    mask = batch.to(model.device)["attention_mask"]
    if language_model_head(given.model) is not None:
        return model(**batch, labels=batch["input_ids"].masked_fill(mask == 0, -100)).loss.double()
    outputs = model(**batch, output_hidden_states=True)
    # A trained prompt stands before the tokens.
    states = (outputs.get("decoder_hidden_states") or outputs.hidden_states)[-1][:, -mask.shape[1] :].double()
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
