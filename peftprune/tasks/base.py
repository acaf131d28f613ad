"""`TaskInfo`: what is known of a task without its data; and the columns that every task's data have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from peftprune.strategy.lazy import Dataset, datasets
from peftprune.tasks.kinds import Kind

TEXT_COLUMNS = ("text_a", "text_b")
"""Names of the text columns of every `Task`, whatever their source calls them."""


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task without reading any data; fields that `Task` has too mean the same.

    `hub_path` is the dataset on the hub, with its configuration, its branch (None: the main one) and its one or two
    text columns; `folder`, in the official GLUE layout, holds `train_file`, with the text `columns` in its header. Both
    are None for generated data. `evaluation_files`, `hub_splits` and `evaluation_sizes` map evaluation splits, the
    primary one first, to file names, split names on the hub, and rows. `label_names` have the order of the hub's.
    """

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    train_size: int
    evaluation_sizes: dict[str, int]
    evaluation_split: str
    columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    hub_path: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    hub_text: tuple[str, ...] = ()
    hub_splits: dict[str, str] | None = None
    folder: str | None = None
    train_file: str = "train.tsv"
    evaluation_files: dict[str, str] | None = None
    prompt: str = ""

    @classmethod
    def read_all(cls, file: Path) -> dict[str, Self]:
        """Returns the tasks in a JSON file by name: the fields of this class, with lists for tuples."""
        rows: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))
        for row in rows.values():
            row |= {field: tuple(value) for field, value in row.items() if isinstance(value, list)}
        return {name: cls(name=name, **row) for name, row in rows.items()}

    @property
    def num_labels(self) -> int:
        return 1 if self.label_names is None else len(self.label_names)

    def find_file(self, folder: Path, name: str) -> Path | None:
        """Returns the path of an official file in the task's folder; None where it is missing."""
        return folder / name if (folder / name).is_file() else None

    def read_file(self, path: Path, training: bool = False) -> Dataset:
        """Returns the split in an official file. Raises UsageError for a broken one."""
        raise NotImplementedError

    def read_hub(self, data: Any, training: bool = False) -> Dataset:
        """Returns a split of the hub's dataset, with the task's column names and types."""
        raise NotImplementedError


def make_dataset(
    texts: Sequence[Sequence[str]], labels: Sequence[int] | Sequence[float], label_names: Sequence[str] | None
) -> Dataset:
    """Returns one split: text columns of n strings each, n labels; `label_names` None makes the labels float32."""
    columns: dict[str, Sequence[object]] = {**dict(zip(TEXT_COLUMNS, texts, strict=False)), "label": labels}
    return datasets.Dataset.from_dict(columns, features=split_features(len(texts), label_names))


def split_features(number_of_texts: int, label_names: Sequence[str] | None) -> datasets.Features:
    """Returns the column types of every split of a task."""
    label = datasets.Value("float32") if label_names is None else datasets.ClassLabel(names=list(label_names))
    return datasets.Features(
        {column: datasets.Value("string") for column in TEXT_COLUMNS[:number_of_texts]} | {"label": label}
    )
