"""Generation tasks: the tokens that decoders and encoder-decoders read, the loss on the target, and generation.

A decoder reads its prompt and the target in one sequence; an encoder-decoder reads the source with the encoder and the
target with the decoder. The loss covers only the tokens of the target, its end token included.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, Trainer

from peftprune.errors import DivergedError, UsageError
from peftprune.models.load import LoadedModel
from peftprune.strategy.lazy import Dataset
from peftprune.tasks import Task
from peftprune.training.settings import TrainingSettings
from peftprune.training.tokenise import Example

IGNORED = -100
"""The label of tokens outside the loss."""


def resolved(settings: TrainingSettings, task: Task, model: LoadedModel) -> TrainingSettings:
    """Returns the settings with a prompt and a number of new tokens: the task's prompt for decoders, the source alone
    for encoder-decoders, and as many tokens as a target has in training."""
    own = "{source}" if is_encoder_decoder(model.model) else task.prompt
    return replace(
        settings,
        prompt=settings.prompt or own or None,
        max_new_tokens=settings.max_new_tokens or settings.max_target_length,
    )


def decoding_in_words(settings: TrainingSettings) -> str:
    how = "greedy decoding" if settings.num_beams == 1 else f"beam search with {settings.num_beams} beams"
    return f"{how}, up to {settings.max_new_tokens} new tokens"


def is_encoder_decoder(model: Any) -> bool:
    return bool(model.config.is_encoder_decoder)


def check_form(settings: TrainingSettings, model: LoadedModel) -> None:
    """Refuses lengths that the model has no positions for, and a model that cannot begin or end a text.

    Raises UsageError, naming the setting.
    """
    if model.tokenizer.eos_token_id is None:
        cure = "Add an eos_token to the files of the tokenizer"
        raise UsageError.of("model", model.name, "has a tokenizer without an end token", cure)
    both = is_encoder_decoder(model.model)
    if both and _start_token(model.model) is None:
        cure = "Set decoder_start_token_id in its config.json"
        raise UsageError.of("model", model.name, "does not define the first token of its decoder", cure)
    positions, written = _positions(model), _written(settings)
    needed = max(settings.max_length, written) if both else settings.max_length + written
    if positions is not None and needed > positions:
        problem = f"with {written} tokens of target needs {needed} positions; {model.name} has {positions}"
        raise UsageError.of("max_length", settings.max_length, problem, "Lower max_length, or max_target_length")


def longest_source(settings: TrainingSettings, model: LoadedModel) -> int | None:
    """Returns the tokens of a prompt that the model has positions for; None where it has no limit."""
    positions = _positions(model)
    if positions is None or is_encoder_decoder(model.model):
        return positions
    return positions - _written(settings)


def _written(settings: TrainingSettings) -> int:
    return max(settings.max_target_length, settings.max_new_tokens or 0)


def _positions(model: LoadedModel) -> int | None:
    found = getattr(model.model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _start_token(model: Any) -> int | None:
    found = [getattr(c, "decoder_start_token_id", None) for c in (model.generation_config, model.config)]
    return next((token for token in found if token is not None), None)


# --- tokens -----------------------------------------------------------------------------------------------------------
def encode(dataset: Dataset, model: LoadedModel, settings: TrainingSettings) -> list[Example]:
    """Returns each example with its first reference as the target: input_ids, attention_mask, labels.

    A decoder's labels stand at the target's own positions, `IGNORED` before them; those of an encoder-decoder are the
    target's tokens. `length` counts the tokens that are computed, source and target together.
    """
    prompts = _prompts(dataset, model, settings)
    targets = _targets([references[0] for references in dataset["label"]], model, settings)
    if is_encoder_decoder(model.model):
        return [_row(p, t, len(p) + len(t)) for p, t in zip(prompts, targets, strict=True)]
    return [_row(p + t, [IGNORED] * len(p) + t, len(p) + len(t)) for p, t in zip(prompts, targets, strict=True)]


def _row(ids: list[int], labels: list[int], length: int) -> Example:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "length": length}


def _prompt(row: Example, alone: bool) -> list[int]:
    """Returns the prompt of a row: its whole input, or (not `alone`) the part before the target."""
    ids: list[int] = row["input_ids"]
    return ids if alone else ids[: row["labels"].count(IGNORED)]


def _prompts(dataset: Dataset, model: LoadedModel, settings: TrainingSettings) -> list[list[int]]:
    before, _, after = (settings.prompt or "{source}").partition("{source}")
    tokenizer = model.tokenizer
    # A target after an end token would not continue the prompt.
    first, last = _frame(tokenizer) if is_encoder_decoder(model.model) else (_frame(tokenizer)[0], [])
    tail = (tokenizer(after, add_special_tokens=False)["input_ids"] if after else []) + last
    room = settings.max_length - len(first) - len(tail)
    if room < 1:
        problem = f"leaves no room for a source beside the prompt's {len(first) + len(tail)} tokens"
        raise UsageError.of("max_length", settings.max_length, problem, "Raise it, or shorten the prompt")
    texts = [before + text for text in dataset["text_a"]]
    found = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return [first + list(ids[:room]) + tail for ids in found]


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return list(full[:start]), list(full[start + len(bare) :])


def _targets(texts: Sequence[str], model: LoadedModel, settings: TrainingSettings) -> list[list[int]]:
    tokenizer = model.tokenizer
    # BART's targets begin with a start token, which its decoder learned to write first.
    first, last = _frame(tokenizer) if is_encoder_decoder(model.model) else ([], [])
    last = last or [tokenizer.eos_token_id]
    room = settings.max_target_length - len(first) - len(last)
    found = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [first + list(ids[:room]) + last for ids in found]


class GenerationCollator:
    """Pads training examples on the right to the longest of the batch.

    For an encoder-decoder the batch also holds the decoder's input: the labels shifted right, with a mask of real
    tokens. The model does not shift them itself, because the trainer computes the loss.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.pad = int(model.tokenizer.pad_token_id)
        self.start = _start_token(model.model) if is_encoder_decoder(model.model) else None

    def __call__(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        batch = {
            "input_ids": _padded([r["input_ids"] for r in rows], self.pad),
            "attention_mask": _padded([r["attention_mask"] for r in rows], 0),
            "labels": _padded([r["labels"] for r in rows], IGNORED),
        }
        if self.start is not None:
            read = [[self.start, *r["labels"][:-1]] for r in rows]
            batch["decoder_input_ids"] = _padded(read, self.pad)
            batch["decoder_attention_mask"] = _padded([[1] * len(r) for r in read], 0)
        return batch


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([[*f, *r] if left else [*r, *f] for r, f in zip(rows, fill, strict=True)])


# --- the loss ---------------------------------------------------------------------------------------------------------
def loss_for(model: Any) -> Callable[..., Tensor]:
    """Returns the loss of a generating model: (outputs, labels, target tokens of the step or None) to the loss."""
    return target_loss if is_encoder_decoder(model) else next_token_loss


def target_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Returns the summed cross-entropy of labels (batch, length) that are not `IGNORED`, over their number in the step.

    Logits are (batch, length, vocabulary), each for the label at its own position.
    """
    kept = labels != IGNORED
    total = nn.functional.cross_entropy(outputs.logits[kept].float(), labels[kept], reduction="sum")
    return total / (kept.sum() if num_items_in_batch is None else num_items_in_batch)


def next_token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Returns `target_loss` where each position's logits are for the next label."""
    return target_loss(SimpleNamespace(logits=outputs.logits[:, :-1]), labels[:, 1:], num_items_in_batch)


# --- evaluation -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def generate(trainer: Trainer, model: LoadedModel, rows: Sequence[Example], settings: TrainingSettings) -> list[str]:
    """Returns the text that the trained model generates for each row's prompt, in order.

    Batches hold prompts of similar length. Of the model's own generation settings only its special tokens are used.
    """
    trained: Any = trainer.model
    left = not is_encoder_decoder(model.model)
    config = _generation_config(model, settings)
    device = next(trained.parameters()).device
    prompts = [_prompt(row, alone=not left) for row in rows]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    trained.eval()
    for start in range(0, len(order), settings.batch_size):
        chosen = order[start : start + settings.batch_size]
        ids = _padded([prompts[i] for i in chosen], int(model.tokenizer.pad_token_id), left=left).to(device)
        mask = _padded([[1] * len(prompts[i]) for i in chosen], 0, left=left).to(device)
        with trainer.accelerator.autocast(), _only_settings(trained, config):
            written = trained.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        new = written[:, ids.shape[1] :] if left else written
        for i, text in zip(chosen, model.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
    return texts


@contextlib.contextmanager
def _only_settings(trained: nn.Module, config: Any) -> Iterator[None]:
    """Overrides a model's own generation settings, from which transformers fills in what a call leaves out."""
    holders: list[Any] = [m for m in trained.modules() if "generation_config" in vars(m)]
    before = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = copy.deepcopy(config)
    try:
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own


def _generation_config(model: LoadedModel, settings: TrainingSettings) -> Any:
    own = model.model.generation_config
    forced = {n: getattr(own, n, None) for n in ("forced_bos_token_id", "forced_eos_token_id")}
    return GenerationConfig(
        do_sample=False,
        num_beams=settings.num_beams,
        max_new_tokens=settings.max_new_tokens,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=model.tokenizer.eos_token_id,
        bos_token_id=model.tokenizer.bos_token_id,
        decoder_start_token_id=_start_token(model.model) if is_encoder_decoder(model.model) else None,
        **{name: token for name, token in forced.items() if token is not None},
    )


@torch.no_grad()
def evaluation_loss(trainer: Trainer, model: LoadedModel, rows: Sequence[Example], batch_size: int) -> float:
    """Returns the mean cross-entropy of a target token under teacher forcing, without any regulariser.

    Raises DivergedError when it is not finite.
    """
    trained: Any = trainer.model
    collate, loss = GenerationCollator(model), loss_for(model.model)
    device = next(trained.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["length"])
    total, tokens = 0.0, 0
    trained.eval()
    for start in range(0, len(order), batch_size):
        batch = {k: v.to(device) for k, v in collate([rows[i] for i in order[start : start + batch_size]]).items()}
        labels = batch.pop("labels")
        with trainer.accelerator.autocast():
            outputs = trained(**batch)
        total += float(loss(outputs, labels, 1))
        tokens += int((labels != IGNORED).sum())
    mean = total / tokens
    if not torch.isfinite(torch.tensor(mean)):
        raise DivergedError("evaluation: the model's outputs are not finite. Lower learning_rate, or use dtype float32")
    return mean
