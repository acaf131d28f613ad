"""Generation tasks: where their data is, and how it becomes pairs of a source text and its references.

In training every reference is an example of its own. In evaluation the rows that share their source are one example
with several references.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftprune.errors import UsageError
from peftprune.strategy.lazy import Dataset, datasets
from peftprune.tasks.base import TEXT_COLUMNS, TaskInfo
from peftprune.tasks.files import Table, parse_json, read_bytes, read_table
from peftprune.tasks.kinds import Kind

Pair = tuple[str, list[str]]
"""A source text and its references."""

PROMPT = "{source}\n"
"""What a decoder reads where a task has no prompt of its own."""

_ENDINGS = ("", ".gz", ".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True)
class GenerationInfo(TaskInfo):
    """What is known of a generation task.

    `targets` (`hub_targets` on the hub) are the columns of references; a file has at least one of them. With `triples`
    the source is a list of triples and the references are annotations with a text (DART).
    """

    targets: tuple[str, ...] = ()
    hub_targets: tuple[str, ...] = ()
    triples: bool = False

    def find_file(self, folder: Path, name: str) -> Path | None:
        """Returns the file of that name, possibly compressed, or with the ending of a format that can be read."""
        return next((p for ending in _ENDINGS if (p := folder / f"{name}{ending}").is_file()), None)

    def read_file(self, path: Path, training: bool = False) -> Dataset:
        pairs = _read_triples(path) if self.triples else _table_pairs(read_table(path), self.columns[0], self.targets)
        return in_training(pairs) if training else in_evaluation(pairs)

    def read_hub(self, data: Any, training: bool = False) -> Dataset:
        read: Callable[[Any], str] = linearised if self.triples else str
        write: Callable[[Any], list[str]] = _annotated if self.triples else _listed
        source = self.hub_text[0]
        try:
            pairs = [(read(row[source]), [r for t in self.hub_targets for r in write(row[t])]) for row in data]
        except KeyError as error:
            cure = "The hub's copy has changed; use data_dir"
            raise UsageError.of("task", self.name, f"lacks the column {error} on the hub", cure) from error
        return in_training(pairs) if training else in_evaluation(pairs)


GENERATION = GenerationInfo.read_all(Path(__file__).with_suffix(".json"))


# --- pairs ------------------------------------------------------------------------------------------------------------
def in_training(pairs: Iterable[Pair]) -> Dataset:
    """Returns one example per reference."""
    return _dataset([(source, [reference]) for source, references in pairs for reference in references])


def in_evaluation(pairs: Iterable[Pair]) -> Dataset:
    """Returns one example per source with all its references, in the order in which sources first occur."""
    grouped: dict[str, dict[str, None]] = {}
    for source, references in pairs:
        grouped.setdefault(source, {}).update(dict.fromkeys(references))
    return _dataset([(source, list(references)) for source, references in grouped.items()])


def _dataset(pairs: Sequence[Pair]) -> Dataset:
    features = datasets.Features({"text_a": datasets.Value("string"), "label": datasets.List(datasets.Value("string"))})
    columns = {"text_a": [source for source, _ in pairs], "label": [references for _, references in pairs]}
    return datasets.Dataset.from_dict(columns, features=features)


def linearised(triples: Sequence[Sequence[str]]) -> str:
    """Returns subject, predicate and object of each triple in one line: `a : b : c | d : e : f`."""
    return " | ".join(" : ".join(str(part) for part in triple) for triple in triples)


def _annotated(annotations: Any) -> list[str]:
    """Returns the texts of DART's annotations: a list of mappings in the files, a mapping of lists on the hub."""
    if isinstance(annotations, Mapping):
        return list(annotations["text"])
    return [annotation["text"] for annotation in annotations]


# --- files ------------------------------------------------------------------------------------------------------------
def _table_pairs(table: Table, source: str, targets: Sequence[str]) -> list[Pair]:
    texts = table.texts(source)
    if not (present := [t for t in targets if t in table.columns]):
        cure = f"Its columns: {', '.join(table.columns)}"
        raise UsageError.of("file", str(table.path), f"has no column {' or '.join(targets)}", cure)
    columns = [table.column(target, "label") for target in present]
    pairs = []
    for index, text in enumerate(texts):
        references = [r for column in columns if column[index] is not None for r in _listed(column[index])]
        if not references or not all(isinstance(r, str) and r.strip() for r in references):
            problem = f"is not a text to learn ({table.where(index)})"
            raise UsageError.of(present[0], columns[0][index], problem, "Give every row a text, or a list of texts")
        pairs.append((text, references))
    return pairs


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _read_triples(path: Path) -> list[Pair]:
    try:
        entries = parse_json(read_bytes(path).decode("utf-8-sig"))
        pairs = [(linearised(entry["tripleset"]), _annotated(entry["annotations"])) for entry in entries]
        if not pairs or not all(isinstance(r, str) and r.strip() for _, texts in pairs for r in texts or [""]):
            raise ValueError("an entry has no text to learn" if pairs else "it is empty")
        return pairs
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        problem = f"is not a file of triples with annotations ({type(error).__name__}: {error})"
        raise UsageError.of("file", str(path), problem, "Put the official file there") from error


# --- files of the user ------------------------------------------------------------------------------------------------
def generation_fields(
    train: Table, test: Table, text: str | Sequence[str], label: str, metrics: Sequence[str] | None, kind: Kind
) -> dict[str, Any]:
    """Returns the fields of a generation `Task`; for the arguments see `Task.from_files`."""
    names = [text] if isinstance(text, str) else list(text)
    if len(names) != 1 or not names[0].strip() or "," in names[0]:
        raise UsageError.of("text", text, "does not name one column", "Generation reads from one column")
    source = names[0].strip()
    if label == source:
        raise UsageError.of("label", label, "is also the text column", "Name the column of the targets")
    for table in (train, test):
        table.column(label, "label")
    return {
        "text": TEXT_COLUMNS[:1],
        "label_names": None,
        "metrics": ("rougeL", "rouge1", "rouge2", "bleu") if metrics is None else tuple(metrics),
        "train": in_training(_table_pairs(train, source, [label])),
        "evaluation": {"test": in_evaluation(_table_pairs(test, source, [label]))},
        "files": {"text": source, "label": label, "kind": kind},
        "prompt": PROMPT,
    }
