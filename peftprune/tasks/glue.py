"""The GLUE tasks: where they are on the hub and on disk, their columns and labels, and how their files are read.

Row counts are those of the official release. Test labels of GLUE are not public, so results are reported on the
official development split.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError
from peftprune.strategy.lazy import Dataset
from peftprune.tasks.base import TEXT_COLUMNS, TaskInfo, make_dataset, split_features
from peftprune.tasks.files import class_indices, numbers, read_tsv


@dataclass(frozen=True)
class GlueInfo(TaskInfo):
    """What is known of a GLUE task.

    `file_header` has the columns of files without a header line, and `file_labels` the files' text for each class, in
    the order of `label_names`. As many as `broken_rows` rows of the official training file have a wrong number of
    fields: they are left out, as in the hub's copy, and a further one is an error.
    """

    label_column: str = "label"
    file_header: tuple[str, ...] | None = None
    file_labels: tuple[str, ...] | None = None
    broken_rows: int = 0

    def read_file(self, path: Path, training: bool = False) -> Dataset:
        table = read_tsv(path, self.file_header, self.broken_rows if training else 0)
        cure = f"Put the official {self.folder} file there."
        if missing := [column for column in (*self.columns, self.label_column) if column not in table.columns]:
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


GLUE = GlueInfo.read_all(Path(__file__).with_suffix(".json"))
