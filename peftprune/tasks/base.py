"""What a task is: its static description (`TaskInfo`) and its data (`Task`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datasets import Dataset, Features

Kind = Literal["classification", "regression", "generation"]
TEXT_COLUMNS = ("text_a", "text_b")
"""What the text columns of every `Task` are called, whatever their source calls them."""


@dataclass(frozen=True)
class TaskInfo:
    """What is known of a task without reading any data.

    Attributes:
        name: the name it is asked for by.
        kind: "classification", "regression" or "generation".
        hub_path: dataset on the hub; None for generated tasks.
        hub_config: configuration of that dataset.
        hub_text: its one or two text columns.
        folder: the task's folder in the official GLUE layout; None for generated tasks.
        train_file: name of the training file in `folder`.
        evaluation_files: evaluation split -> file name in `folder`, the primary one first.
        hub_splits: evaluation split -> split name on the hub.
        columns: the one or two text columns in the files' header.
        label_column: the label's column in the files' header.
        file_header: the column names of files that have no header line; None where the file has one.
        label_names: class names in the order of their numbers on the hub; None for regression.
        file_labels: what the files write for each class, in the same order.
        metrics: names from `peftprune.stats.metrics`, the primary one first.
        train_size: rows of the official training split.
        evaluation_sizes: evaluation split -> rows.
        evaluation_split: what the reported split is, in words for tables.
        broken_rows: how many rows of the official training file may have the wrong number of fields and are left out,
            as the hub's copy leaves them out; any further one is an error.
        prompt: what a decoder reads in a generation task: text that holds "{source}"; empty for other tasks.
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
    hub_text: tuple[str, ...] = ()
    hub_splits: dict[str, str] | None = None
    folder: str | None = None
    train_file: str = "train.tsv"
    evaluation_files: dict[str, str] | None = None
    label_column: str = "label"
    file_header: tuple[str, ...] | None = None
    file_labels: tuple[str, ...] | None = None
    broken_rows: int = 0
    prompt: str = ""


def make_dataset(
    texts: Sequence[Sequence[str]], labels: Sequence[int] | Sequence[float], label_names: Sequence[str] | None
) -> Dataset:
    """One split: text columns of n strings each, n labels; `label_names` None makes the labels float32."""
    import datasets

    columns: Mapping[str, Sequence[object]] = {
        **dict(zip(TEXT_COLUMNS, texts, strict=False)),
        "label": labels,
    }
    return datasets.Dataset.from_dict(dict(columns), features=split_features(len(texts), label_names))


def split_features(number_of_texts: int, label_names: Sequence[str] | None) -> Features:
    """The column types of every split of a task."""
    import datasets

    label = datasets.Value("float32") if label_names is None else datasets.ClassLabel(names=list(label_names))
    return datasets.Features(
        {column: datasets.Value("string") for column in TEXT_COLUMNS[:number_of_texts]} | {"label": label}
    )
