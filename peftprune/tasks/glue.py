"""The GLUE tasks as data: where they are on the hub and on disk, what their columns and labels are called.

Row counts are those of the official release. Test labels of GLUE are not public, so the official development split is
what gets reported.
"""

from __future__ import annotations

from peftprune.tasks.base import TaskInfo

HUB_PATH = "nyu-mll/glue"


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
) -> TaskInfo:
    """One row of the table. `splits`: name -> (file, hub split, rows); one official dev split by default."""
    splits = splits or {"dev": ("dev.tsv", "validation", sizes[1])}
    numbers = None if label_names is None else tuple(str(number) for number in range(len(label_names)))
    return TaskInfo(
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

GLUE: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        _glue(
            "cola",
            "CoLA",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews",),
            (8551, 1043),
            file_header=("source", "label", "star", "sentence"),
        ),
        _glue("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",), (67349, 872)),
        _glue(
            "mrpc",
            "MRPC",
            ("#1 String", "#2 String"),
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            (3668, 408),
            hub_text=_PAIR,
            label_column="Quality",
        ),
        _glue("stsb", "STS-B", _PAIR, None, ("pearson", "spearman"), (5749, 1500), label_column="score"),
        _glue(
            "qqp",
            "QQP",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            (363846, 40430),
            label_column="is_duplicate",
            broken_rows=50,
        ),
        _glue(
            "mnli",
            "MNLI",
            _PAIR,
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            (392702, 9815),
            hub_text=("premise", "hypothesis"),
            label_column="gold_label",
            labels_are_words=True,
            splits={
                "matched": ("dev_matched.tsv", "validation_matched", 9815),
                "mismatched": ("dev_mismatched.tsv", "validation_mismatched", 9832),
            },
        ),
        _glue(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            _ENTAILMENT,
            ("accuracy",),
            (104743, 5463),
            labels_are_words=True,
        ),
        _glue("rte", "RTE", _PAIR, _ENTAILMENT, ("accuracy",), (2490, 277), labels_are_words=True),
        _glue("wnli", "WNLI", _PAIR, ("not_entailment", "entailment"), ("accuracy",), (635, 71)),
    )
}
