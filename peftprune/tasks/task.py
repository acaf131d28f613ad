from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError
from peftprune.files import check_path
from peftprune.strategy.lazy import Dataset
from peftprune.tasks.files import labelled_fields, read_files
from peftprune.tasks.generation import generation_fields
from peftprune.tasks.kinds import KINDS, Kind


@dataclass(frozen=True, eq=False)
class Task:
    """A task with its data, ready to be tokenised.

    Attributes:
        name: short name, used in tables and folder names.
        text: the text columns of the data: `("text_a",)` or `("text_a", "text_b")`.
        label_names: class names by class index; None for regression and generation.
        metrics: names from `peftprune.stats.metrics`, the primary one first.
        train: columns `text` and `label` (a class index, a float32, or for generation the list of references, one in
            training).
        evaluation: split name -> data with the same columns; the first split is the primary one. Never used to select.
        source: where the data came from, in words.
        evaluation_split: the reported split, in words for tables, such as "official dev".
        validation: data to select on, where the task has its own.
        named: True where `load_task` loads it by its name.
        files: the arguments of `from_files` that made it.
        prompt: what a decoder reads in a generation task: text that holds "{source}", which stands for the source text.
            Encoder-decoders read the source alone.
    """

    name: str
    kind: Kind
    text: tuple[str, ...]
    label_names: tuple[str, ...] | None
    metrics: tuple[str, ...]
    train: Dataset
    evaluation: dict[str, Dataset]
    source: str
    evaluation_split: str
    validation: Dataset | None = None
    named: bool = False
    files: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = ""

    @property
    def num_labels(self) -> int:
        """Outputs of the task head: the number of classes, otherwise 1."""
        return 1 if self.label_names is None else len(self.label_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what decides a result: kind, classes, metrics and every row, in order.

        Name and source are left out, so that the same data read from a folder or the hub have the same fingerprint.
        """
        digest = hashlib.sha256()
        digest.update(json.dumps([self.kind, self.label_names, self.metrics], ensure_ascii=True).encode())
        splits = {"train": self.train, "validation": self.validation} | {
            f"evaluation {name}": data for name, data in self.evaluation.items()
        }
        for name, data in splits.items():
            if data is not None:
                digest.update(json.dumps([name, data[:]], sort_keys=True, ensure_ascii=True).encode())
        return digest.hexdigest()

    @classmethod
    def from_files(
        cls,
        train_file: str | Path,
        test_file: str | Path,
        text: str | Sequence[str],
        label: str,
        regression: bool = False,
        name: str | None = None,
        metrics: Sequence[str] | None = None,
        kind: Kind | None = None,
        validation_file: str | Path | None = None,
    ) -> Task:
        """Makes a task of two files: CSV, TSV, JSON lines or parquet, by suffix; text formats may end in `.gz`.

        Args:
            train_file, test_file: the training data, and the data that results are reported on.
            text, label: one or two column names (one string may hold both, separated by a comma), and the label's.
            regression: labels are numbers to predict, not classes.
            name: of the task; by default that of the training file, or of its folder if the file's name is "train".
            metrics: names from `peftprune.stats.metrics`, the primary one first; `compare` checks them. Default:
                accuracy and F1 (macro average above two classes), Pearson and Spearman correlation for regression, or
                ROUGE and BLEU for generation.
            kind: "classification" (the default), "regression" (the same as `regression=True`) or "generation": `text`
                is then the one source column and `label` the column of the targets, each a text or a list of texts.
            validation_file: data to select on, for tuning; without it, tuning takes a part of the training data.

        The classes are those of the training file, sorted; whole numbers in numeric order. In generation, rows of the
        test file with the same source are one example with several references.

        Raises:
            UsageError: a file, column, row or label does not fit; the message names it.
        """
        check_path("train_file", train_file)
        check_path("test_file", test_file)
        if validation_file is not None:
            check_path("validation_file", validation_file)
        texts = {"label": label, "name": name or "", "kind": kind or ""}
        _check_types(texts, {"text": [text] if isinstance(text, str) else text, "metrics": metrics or []}, regression)
        asked = kind or ("regression" if regression else "classification")
        if asked not in KINDS or (regression and asked != "regression"):
            beside = " beside regression" if regression else ""
            raise UsageError.of("kind", kind, f"is not a kind of task{beside}", f"Give one of {', '.join(KINDS)}")
        build = generation_fields if KINDS[asked].writes_text else labelled_fields
        fields = build(*read_files(train_file, test_file), text, label, metrics, asked)
        files = {"train_file": str(train_file), "test_file": str(test_file)}
        if validation_file is not None:
            files["validation_file"] = str(validation_file)
            if Path(validation_file).resolve() == Path(test_file).resolve():
                problem = "is what results are reported on"
                raise UsageError.of("validation_file", str(validation_file), problem, "Give other data")
            try:
                held_out = build(*read_files(train_file, validation_file), text, label, metrics, asked)
            except UsageError as error:
                raise UsageError(str(error).replace("test_file:", "validation_file:", 1)) from None
            fields["validation"] = held_out["evaluation"]["test"]
        fields["files"] = {**files, **fields["files"]}
        stem, folder = Path(train_file).name.split(".")[0], Path(train_file).resolve().parent.name
        return cls(
            name=name or (folder or stem if stem == "train" else stem),
            kind=asked,
            source=f"files {train_file} and {test_file}",
            evaluation_split="test",
            **fields,
        )


def _check_types(texts: Mapping[str, Any], lists: Mapping[str, Any], regression: Any) -> None:
    """Raises UsageError for arguments of `Task.from_files` of other types, such as the numbers in a study file."""
    for argument, value in texts.items():
        if not isinstance(value, str):
            raise UsageError.of(argument, value, "is not text", "Put it in quotes")
    if "/" in texts["name"] or not texts["name"].isprintable():
        raise UsageError.of("name", texts["name"], "cannot name a folder", "Leave out slashes and control characters")
    for argument, value in lists.items():
        if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
            raise UsageError.of(argument, value, "is not a list of texts", "Put each in quotes")
    if not isinstance(regression, bool):
        raise UsageError.of("regression", regression, "is neither true nor false", "Write true, or leave it out")
