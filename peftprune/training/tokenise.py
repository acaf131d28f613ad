"""Tokenise the examples of a task, cached on disk per task and tokenizer; and sample them."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from peftprune.errors import UsageError
from peftprune.files import write_atomically
from peftprune.models.load import LoadedModel
from peftprune.strategy.lazy import Dataset
from peftprune.strategy.rng import stream_seed

Example = dict[str, Any]


def cache_folder() -> Path:
    """Returns the folder of cached data: `PEFTPRUNE_CACHE`, by default `~/.cache/peftprune`."""
    return Path(os.environ.get("PEFTPRUNE_CACHE") or Path.home() / ".cache" / "peftprune")


def tokenise(dataset: Dataset, model: LoadedModel, max_length: int, fingerprint: str) -> list[Example]:
    """Returns the token ids of every example, unpadded, with its label under "labels".

    Examples longer than `max_length` are truncated, the longer text first. The dataset's `fingerprint` names the cache
    file, together with the tokenizer and `max_length`.
    """

    def encode() -> pa.Table:
        texts = [list(dataset["text_a"])] + ([list(dataset["text_b"])] if "text_b" in dataset.column_names else [])
        encoded = model.tokenizer(*texts, truncation=True, max_length=max_length)
        return pa.table({**encoded, "labels": list(dataset["label"])})

    return cached(model, f"{fingerprint}/", f"/{max_length}", encode)


def cached(model: LoadedModel, before: str, after: str, encode: Callable[[], pa.Table]) -> list[Example]:
    """Returns the rows of a table, from the cache where they are; its key is the tokenizer between two texts."""
    key = hashlib.sha256(f"{before}{_tokenizer_text(model.tokenizer)}{after}".encode()).hexdigest()[:24]
    path = cache_folder() / "tokenised" / f"{key}.parquet"
    if path.is_file():
        with contextlib.suppress(OSError, pa.ArrowException):
            return pq.read_table(path).to_pylist()
    table = encode()
    # The cache only saves time: where it cannot be written, the next run tokenises again.
    with contextlib.suppress(OSError):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(path, sink.getvalue())
    return table.to_pylist()


def _tokenizer_text(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))


def sample(dataset: Dataset, size: int | None, setting: str) -> Dataset:
    """Returns a fixed random sample, the same for every seed; all rows for None or a size that is not smaller.

    `setting` is the name of the setting that limits the size; each has a random stream of its own.
    """
    if size is None or size >= len(dataset):
        return dataset
    order = np.random.default_rng(stream_seed(0, setting)).permutation(len(dataset))[:size]
    return dataset.select(sorted(order.tolist()))


def longest_input(model: LoadedModel) -> int | None:
    """Returns the tokens that the model reads at most; None where it has no limit."""
    limit = getattr(model.tokenizer, "model_max_length", None)
    positions = getattr(model.model.config, "max_position_embeddings", None)
    return min((n for n in (limit, positions) if isinstance(n, int) and 0 < n < 10**6), default=None)


def check_lengths(model: LoadedModel, max_length: int) -> None:
    """Refuses a `max_length` that the model has no positions for; the UsageError names the largest that fits."""
    longest = longest_input(model)
    if longest is not None and max_length > longest:
        raise UsageError.of("max_length", max_length, f"is beyond what {model.name} reads", f"Give up to {longest}")
