"""Tiny untrained models that write text, with a tokenizer of the words of their task, and a task for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from peftprune.tasks import Task
from peftprune.tasks.generation import in_evaluation, in_training

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn")
PLACES = ("home", "school", "work", "town")
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
PROMPT = "{source}\nsays :\n"


def pairs(n: int, start: int = 0) -> list[tuple[str, list[str]]]:
    """`Ann town` is written as `Ann goes to town today`."""
    found = []
    for i in range(start, start + n):
        name, place = NAMES[i % len(NAMES)], PLACES[(i * 7 // 3) % len(PLACES)]
        found.append((f"{name} {place}" + " now" * (i % 3), [f"{name} goes to {place} today"]))
    return found


def writing_task(n: int = 48, tests: int = 12, metrics: tuple[str, ...] = ("rougeL", "bleu")) -> Task:
    """A generated task whose targets repeat words of their sources."""
    data = in_training(pairs(n)), {"test": in_evaluation(pairs(tests, 100))}
    return Task("writing", "generation", ("text_a",), None, metrics, *data, "generated", "generated", prompt=PROMPT)


def word_tokenizer(texts: Sequence[str], *, bos: bool, eos: bool) -> Any:
    """Whole words, split at white space; optionally a start token before and an end token after each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(word for text in texts for word in text.split())
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_writer(architecture: str, folder: Path, texts: Sequence[str] = (), positions: int = 64) -> Path:
    """Save a randomly initialised `llama`, `bart` or `t5` of width 32 that knows the words of the texts."""
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    texts = texts or [*(text for source, (target,) in pairs(48) for text in (source, target)), PROMPT, "now"]
    tokenizer = word_tokenizer(texts, bos=architecture != "t5", eos=architecture != "llama")
    size = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    model: Any
    if architecture == "llama":
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(
            LlamaConfig(**size, **shape, bos_token_id=1, max_position_embeddings=positions, initializer_range=0.2)
        )
    elif architecture == "bart":
        widths = {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("layers", 2), ("attention_heads", 4))}
        widths |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32, "max_position_embeddings": positions}
        ends = {"bos_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": None, "dropout": 0.0}
        model = BartForConditionalGeneration(BartConfig(**size, **widths, **ends, init_std=0.2))
    else:
        shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        model = T5ForConditionalGeneration(T5Config(**size, **shape, decoder_start_token_id=0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
