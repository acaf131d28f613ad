"""The GLUE tasks: where they are on the hub and on disk, their columns and labels, and how their files are read.

Row counts are those of the official release. Test labels of GLUE are not public, so results are reported on the
official development split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftprune.errors import UsageError
from peftprune.tasks.base import TEXT_COLUMNS, TaskInfo, make_dataset, split_features
from peftprune.tasks.files import class_indices, numbers, read_tsv

if TYPE_CHECKING:
    from datasets import Dataset

HUB_PATH = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueInfo(TaskInfo):
    """What is known of a GLUE task.

    Attributes:
        label_column: the label's column in the files' header.
        file_header: the column names of files that have no header line; None where the file has one.
        file_labels: the files' text for each class, in the order of `label_names`; None for regression.
        broken_rows: rows of the official training file that may have the wrong number of fields. They are left out, as
            in the hub's copy; any further one is an error.
    """

    label_column: str = "label"
    file_header: tuple[str, ...] | None = None
    file_labels: tuple[str, ...] | None = None
    broken_rows: int = 0

    def read_file(self, path: Path, training: bool = False) -> Dataset:
        table = read_tsv(path, self.file_header, self.broken_rows if training else 0)
        cure = f"Put the official {self.folder} file there."
        missing = [column for column in (*self.columns, self.label_column) if column not in table.columns]
        if missing:
            problem = f"lacks the column {missing[0]!r} (it has {', '.join(table.columns)})"
            raise UsageError.of("file", str(path), problem, cure)
        if not table.rows:
            raise UsageError.of("file", str(path), "holds no rows", cure)
        labels: list[int] | list[float]
        if self.file_labels is None:
            labels = numbers(table, self.label_column)
        else:
            labels = class_indices(table, self.label_column, self.file_labels, f"the official {self.folder} files")
        return make_dataset([table.texts(column) for column in self.columns], labels, self.label_names)

    def read_hub(self, data: Any, training: bool = False) -> Dataset:
        names = getattr(data.features["label"], "names", None)
        if self.label_names is not None and names is not None and tuple(names) != self.label_names:
            problem = f"has the labels {names} on the hub, not {list(self.label_names)}"
            raise UsageError.of("task", self.name, problem, "The hub's copy has changed; use data_dir.")
        data = data.select_columns([*self.hub_text, "label"])
        data = data.rename_columns(dict(zip(self.hub_text, TEXT_COLUMNS, strict=False)))
        return data.cast(split_features(len(self.hub_text), self.label_names))


def _glue(
    name: str,
    folder: str,
    columns: tuple[str, ...],
    label_names: tuple[str, ...] | None,
    metrics: tuple[str, ...],
    sizes: tuple[int, int],
    *,
    hub_text: tuple[str, ...] | None = None,
    label_column: str = "label",
    file_header: tuple[str, ...] | None = None,
    labels_are_words: bool = False,
    splits: dict[str, tuple[str, str, int]] | None = None,
    broken_rows: int = 0,
) -> GlueInfo:
    """Returns one row of the table. `splits`: name -> (file, hub split, rows); by default one official dev split."""
    splits = splits or {"dev": ("dev.tsv", "validation", sizes[1])}
    numbers = None if label_names is None else tuple(str(number) for number in range(len(label_names)))
    return GlueInfo(
        name=name,
        kind="regression" if label_names is None else "classification",
        metrics=metrics,
        train_size=sizes[0],
        evaluation_sizes={split: size for split, (_, _, size) in splits.items()},
        evaluation_split="official dev",
        columns=columns,
        label_names=label_names,
        hub_path=HUB_PATH,
        hub_config=name,
        hub_text=hub_text or columns,
        hub_splits={split: hub for split, (_, hub, _) in splits.items()},
        folder=folder,
        evaluation_files={split: file for split, (file, _, _) in splits.items()},
        label_column=label_column,
        file_header=file_header,
        file_labels=label_names if labels_are_words else numbers,
        broken_rows=broken_rows,
    )


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

# fmt: off
_ROWS = (
    _glue("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), (8551, 1043),
          file_header=("source", "label", "star", "sentence")),
    _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",), (67349, 872)),
    _glue("mrpc", "MRPC", ("#1 String", "#2 String"), ("not_equivalent", "equivalent"), ("accuracy", "f1"),
          (3668, 408), hub_text=_PAIR, label_column="Quality"),
    _glue("stsb", "STS-B", _PAIR, None, ("pearson", "spearman"), (5749, 1500), label_column="score"),
    _glue("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"),
          (363846, 40430), label_column="is_duplicate", broken_rows=50),
    _glue("mnli", "MNLI", _PAIR, ("entailment", "neutral", "contradiction"), ("accuracy",), (392702, 9815),
          hub_text=("premise", "hypothesis"), label_column="gold_label", labels_are_words=True,
          splits={"matched": ("dev_matched.tsv", "validation_matched", 9815),
                  "mismatched": ("dev_mismatched.tsv", "validation_mismatched", 9832)}),
    _glue("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT, ("accuracy",), (104743, 5463), labels_are_words=True),
    _glue("rte", "RTE", _PAIR, _ENTAILMENT, ("accuracy",), (2490, 277), labels_are_words=True),
    _glue("wnli", "WNLI", _PAIR, ("not_entailment", "entailment"), ("accuracy",), (635, 71)),
)
# fmt: on
GLUE: dict[str, GlueInfo] = {info.name: info for info in _ROWS}
