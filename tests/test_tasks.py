"""Tasks: reading the official GLUE layout, the hub, files of one's own, and what is said when something is wrong."""

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from peftprune.errors import UsageError
from peftprune.stats.metrics import METRICS
from peftprune.study.arguments import load_tasks
from peftprune.tasks import TASKS, Task, load_task, task_info
from peftprune.tasks import load as loading
from peftprune.tasks.generation import GENERATION
from peftprune.tasks.glue import GLUE

ROWS = 4


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No data from the environment, and no network: the hub counts as unreachable."""
    if request.node.get_closest_marker("shared_data") is None:
        monkeypatch.delenv("PEFTPRUNE_DATA", raising=False)
    monkeypatch.setattr(loading, "_hub_problem", lambda path: "no network in tests")


def glue_file(name: str, rows: int = ROWS, *, end: str = "\n", bom: bool = False) -> bytes:
    """A small file in the layout of one GLUE task, with columns that the task does not use around those it does."""
    info = TASKS[name]
    header = list(info.file_header or ("index", *info.columns, info.label_column))
    lines = [] if info.file_header else [header]
    for row in range(rows):
        values = {column: f'{column} of row {row} says "so' for column in info.columns}
        values[info.label_column] = f"{row}.250" if info.file_labels is None else info.file_labels[row % 2]
        lines.append([values.get(column, str(row)) for column in header])
    text = "".join("\t".join(line) + end for line in lines)
    return (b"\xef\xbb\xbf" if bom else b"") + text.encode()


def write_glue(root: Path, name: str, **options: object) -> Path:
    """Write a task's files under `root` and return its folder."""
    info = TASKS[name]
    assert info.folder is not None
    assert info.evaluation_files is not None
    folder = root / info.folder
    folder.mkdir(parents=True)
    for file in (info.train_file, *info.evaluation_files.values()):
        (folder / file).write_bytes(glue_file(name, **options))  # type: ignore[arg-type]
    return folder


GLUE_NAMES = list(GLUE)


# --- the table --------------------------------------------------------------------------------------------------------
def test_the_table_is_complete_and_coherent() -> None:
    assert list(GLUE) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
    assert list(TASKS) == [*GLUE, *GENERATION, "entailment-mini"]
    for name, info in TASKS.items():
        assert info.name == name
        assert (info.label_names is None) == (info.kind != "classification")
        assert (info.kind == "regression") == (name == "stsb")
        assert all(METRICS[metric].kind == info.kind for metric in info.metrics)
        assert 1 <= len(info.columns) <= 2
        if info.folder:
            assert len(info.hub_text) == len(info.columns)
            assert info.evaluation_files is not None
            assert info.hub_splits is not None
            assert list(info.evaluation_files) == list(info.hub_splits) == list(info.evaluation_sizes)


@pytest.mark.parametrize(("asked", "found"), [("SST-2", "sst2"), ("sts_b", "stsb"), ("RTE", "rte")])
def test_names_are_read_generously(asked: str, found: str) -> None:
    assert task_info(asked).name == found


def test_an_unknown_task_gets_a_suggestion_and_the_list() -> None:
    with pytest.raises(UsageError, match=r"'mrcp' is not a known task. Did you mean 'mrpc'\? Choose among cola, sst2"):
        load_task("mrcp")


# --- the official folder layout ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", GLUE_NAMES)
@pytest.mark.parametrize(("below", "end", "bom"), [("", "\n", False), ("glue", "\r\n", True)])
def test_glue_folders(name: str, below: str, end: str, bom: bool, tmp_path: Path) -> None:
    folder = write_glue(tmp_path / below, name, end=end, bom=bom)
    info, task = TASKS[name], load_task(name, data_dir=tmp_path)
    assert task.source == f"folder {folder}"
    assert task.evaluation_split == "official dev"
    assert list(task.evaluation) == list(info.evaluation_sizes)
    assert task.text == ("text_a", "text_b")[: len(info.columns)]
    assert task.num_labels == (1 if info.label_names is None else len(info.label_names))
    for data in (task.train, *task.evaluation.values()):
        assert data.column_names == [*task.text, "label"]
        assert data["label"][:] == ([0.25, 1.25, 2.25, 3.25] if name == "stsb" else [0, 1, 0, 1])
        assert data["text_a"][1] == f'{info.columns[0]} of row 1 says "so'
        if info.label_names is not None:
            assert tuple(data.features["label"].names) == info.label_names


def test_a_sentence_may_hold_unicode_line_separators(tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "sst2")
    sentence = "one\u2028two\x85three\x0bfour\x1cfive "
    (folder / "train.tsv").write_text(f"sentence\tlabel\n{sentence}\t1\n", encoding="utf-8", newline="")
    assert load_task("sst2", data_dir=tmp_path).train[0] == {"text_a": sentence, "label": 1}


@pytest.mark.parametrize("name", ["rte", "cola"])
def test_a_row_with_the_wrong_number_of_fields_is_named(name: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, name)
    with (folder / "dev.tsv").open("ab") as file:
        file.write(b"9\tleft over\n")
    line = ROWS + (1 if name == "cola" else 2)
    with pytest.raises(UsageError, match=rf"dev\.tsv' has 2 fields in line {line}, but 4 columns"):
        load_task(name, data_dir=tmp_path)


def test_only_the_known_broken_rows_of_qqp_are_left_out(tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "qqp")
    known = TASKS["qqp"].broken_rows
    (folder / "train.tsv").write_bytes(glue_file("qqp") + b"torn\n" * known)
    assert len(load_task("qqp", data_dir=tmp_path).train) == ROWS
    (folder / "train.tsv").write_bytes(glue_file("qqp") + b"torn\n" * (known + 1))
    with pytest.raises(UsageError, match="has 1 fields in line 6"):
        load_task("qqp", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"index\tsentence1\tsentence2\n0\ta\tb\n", "lacks the column 'label'"),
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", "'maybe' is not among the labels.*line 2"),
        (b"index\tsentence1\tsentence2\tlabel\n", "holds no rows"),
        (b"index\tsentence1\tsentence2\tlabel\n0\t\xff\tb\tentailment\n", "is not UTF-8"),
    ],
)
def test_broken_glue_files(content: bytes, complaint: str, tmp_path: Path) -> None:
    folder = write_glue(tmp_path, "rte")
    (folder / "train.tsv").write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        load_task("rte", data_dir=tmp_path)


# --- where it is looked for -------------------------------------------------------------------------------------------
def test_the_environment_is_used_where_no_folder_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_glue(tmp_path / "a", "rte")
    write_glue(tmp_path / "b", "rte", rows=2)
    monkeypatch.setenv("PEFTPRUNE_DATA", str(tmp_path / "a"))
    assert len(load_task("rte").train) == ROWS
    assert len(load_task("rte", data_dir=tmp_path / "b").train) == 2


def test_a_folder_that_does_not_exist_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_from_hub", lambda info: pytest.fail("asked the hub"))
    with pytest.raises(UsageError, match=r"data_dir: .*nowhere' is not a folder"):
        load_task("rte", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("PEFTPRUNE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"PEFTPRUNE_DATA: .*nowhere' is not a folder"):
        load_task("rte")


def test_the_last_error_lists_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UsageError) as caught:
        load_task("rte", data_dir=tmp_path)
    for part in (str(tmp_path / "RTE"), str(tmp_path / "glue" / "RTE"), "nyu-mll/glue (rte)", "no network in tests"):
        assert part in str(caught.value)
    with pytest.raises(UsageError, match="Set data_dir or PEFTPRUNE_DATA"):
        load_task("rte")
    (write_glue(tmp_path, "rte") / "train.tsv").unlink()
    with pytest.raises(UsageError, match=r"RTE/train\.tsv is missing"):
        load_task("rte", data_dir=tmp_path)


@pytest.mark.parametrize("name", GLUE_NAMES)
def test_the_hub_gives_the_same_task_as_the_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    write_glue(tmp_path, name)
    info, local = TASKS[name], load_task(name, data_dir=tmp_path)
    assert info.hub_splits is not None

    def stub(path: str, config: str) -> datasets.DatasetDict:
        assert (path, config) == ("nyu-mll/glue", name)
        assert datasets.config.HF_HUB_OFFLINE, "an unreachable hub must not be asked again"

        def split(data: datasets.Dataset) -> datasets.Dataset:
            renamed = data.rename_columns(dict(zip(local.text, info.hub_text, strict=True)))
            return renamed.add_column("idx", list(range(len(data))))

        hub = {info.hub_splits[key]: split(data) for key, data in local.evaluation.items()}  # type: ignore[index]
        return datasets.DatasetDict({"train": split(local.train), **hub})

    before = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr("datasets.load_dataset", stub)
    task = load_task(name)
    assert task.source == f"hub nyu-mll/glue, {name}"
    assert task.fingerprint == local.fingerprint
    assert task.train.features == local.train.features
    assert before == datasets.config.HF_HUB_OFFLINE


def test_the_hub_is_a_fallback_that_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = Task.from_files(*write_pair(tmp_path, "csv"), text="a,b", label="y")
    monkeypatch.setattr(loading, "_from_hub", lambda info: task)
    assert load_task("rte", data_dir=tmp_path) is task
    assert str(tmp_path / "RTE") in caplog.text


def test_labels_in_another_order_on_the_hub_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    label = datasets.ClassLabel(names=["not_entailment", "entailment"])
    features = datasets.Features(
        {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "label": label}
    )
    data = datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [0]}, features=features)
    monkeypatch.setattr("datasets.load_dataset", lambda *args: {"train": data, "validation": data})
    with pytest.raises(UsageError, match="The hub's copy has changed"):
        load_task("rte")


# --- the task itself --------------------------------------------------------------------------------------------------
def test_the_fingerprint_sees_every_cell_and_no_name(tmp_path: Path) -> None:
    train, test = write_pair(tmp_path, "csv")

    def fingerprint(**options: object) -> str:
        return Task.from_files(train, test, text="a,b", label="y", **options).fingerprint  # type: ignore[arg-type]

    first = fingerprint()
    assert len(first) == 64
    assert fingerprint(name="other") == first
    assert fingerprint(metrics=["accuracy"]) != first
    test.write_text(test.read_text().replace("row 3", "row three"))
    assert fingerprint() != first


# --- files of one's own -----------------------------------------------------------------------------------------------
RECORDS = [{"a": f"row {n}", "b": f'has, "{n}"\tand', "y": n % 2 + 1, "z": n / 2} for n in range(4)]


def write_records(path: Path, records: list[dict[str, object]]) -> Path:
    """Write records in the format that the suffix asks for."""
    import pandas

    frame = pandas.DataFrame(records)
    kind = path.name.split(".", 1)[1]
    if kind.startswith("csv"):
        frame.to_csv(path, index=False)
    elif kind.startswith("tsv"):
        rows = [list(records[0]), *([str(value).replace("\t", " ") for value in r.values()] for r in records)]
        text = "".join("\t".join(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    elif kind.startswith("jsonl"):
        text = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    else:
        frame.to_parquet(path)
    return path


def write_pair(folder: Path, suffix: str, **changes: list[dict[str, object]]) -> tuple[Path, Path]:
    """A training and a test file."""
    train = write_records(folder / f"mine.{suffix}", changes.get("train", RECORDS))  # type: ignore[arg-type]
    return train, write_records(folder / f"held_out.{suffix}", changes.get("test", RECORDS))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_same_task(suffix: str, tmp_path: Path) -> None:
    task = Task.from_files(*write_pair(tmp_path, suffix), text="a, b", label="y")
    space = " " if suffix.startswith("tsv") else "\t"  # TSV cannot hold a tab
    assert task.train[1] == {"text_a": "row 1", "text_b": f'has, "1"{space}and', "label": 1}
    assert task.label_names == ("1", "2")
    assert task.metrics == ("accuracy", "f1")
    assert (task.name, task.evaluation_split, list(task.evaluation)) == ("mine", "test", ["test"])
    scores = Task.from_files(*write_pair(tmp_path, suffix), text=["a"], label="z", regression=True)
    assert scores.train["label"][:] == [0.0, 0.5, 1.0, 1.5]
    assert (scores.label_names, scores.num_labels, scores.metrics) == (None, 1, ("pearson", "spearman"))


def test_classes_are_sorted_and_whole_numbers_by_value(tmp_path: Path) -> None:
    def classes(labels: list[object]) -> tuple[str, ...] | None:
        records: list[dict[str, object]] = [{"a": "text", "y": label} for label in labels]
        return Task.from_files(*write_pair(tmp_path, "jsonl", train=records, test=records), "a", "y").label_names

    assert classes([10, 9, "-1", 9.0]) == ("-1", "9", "10")
    assert classes(["b", "a", "10", "9"]) == ("10", "9", "a", "b")
    assert classes([True, False]) == ("False", "True")


def test_csv_follows_the_quotes_over_lines(tmp_path: Path) -> None:
    train, test = write_pair(tmp_path, "csv")
    train.write_bytes(b'\xef\xbb\xbfa,y\r\n"one\r\ntwo, ""three""",x\r\n\r\nplain,y\r\n')
    test.write_text("a,y\nplain,x\n\nother,q\n")
    with pytest.raises(UsageError, match=r"'q' is not among the labels of .*mine\.csv .*held_out\.csv, line 4"):
        Task.from_files(train, test, "a", "y")
    test.write_text("a,y\nplain,x\nother,y\n")
    assert Task.from_files(train, test, "a", "y").train["text_a"][:] == ['one\r\ntwo, "three"', "plain"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"text": "c"}, r"'c' is not a column of .*mine\.csv. Choose among its columns: a, b, y, z"),
        ({"label": "c"}, "'c' is not a column"),
        ({"text": "a,b,z"}, "does not name one or two columns"),
        ({"text": ""}, "does not name one or two columns"),
        ({"text": "a,a"}, "does not name one or two columns"),
        ({"text": "a,y"}, "is also a text column"),
        ({"train_file": "nowhere.csv"}, "does not exist"),
        ({"train_file": "mine.txt"}, "suffix that peftprune does not read"),
        ({"train_file": "mine.parquet.gz"}, "suffix that peftprune does not read"),
        ({"label": "b", "regression": True, "text": "a"}, r"b: .* is not a finite number \(.*mine\.csv, line 2\)"),
        ({"metrics": ["pearson"]}, "does not fit classification"),
        ({"metrics": ["accuracy"], "regression": True}, "does not fit regression"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], complaint: str, tmp_path: Path) -> None:
    train, test = write_pair(tmp_path, "csv")
    options: dict[str, object] = {"train_file": train, "test_file": test, "text": "a,b", "label": "y"} | arguments
    with pytest.raises(UsageError, match=complaint):
        load_tasks(Task.from_files(**options), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("suffix", "content", "complaint"),
    [
        ("csv", b"", "holds no rows"),
        ("csv", b"a,y\n", "holds no rows"),
        ("csv", b"a,y\none,1\ntwo\n", "has 1 fields in line 3, but 2 columns"),
        ("csv", b'a,y\n"one,1\n', "is broken in line"),
        ("csv", b"a,a\none,1\n", "two columns of one name"),
        ("csv", b"a,y\none,1\ntwo,\n", r"y: '' is not a label \(.*line 3\)"),
        ("csv", b"a,y\none,1\ntwo,1\n", "holds one class only"),
        ("tsv", b"a\ty\none\t1\ntwo\t2\t3\n", "has 3 fields in line 3"),
        ("tsv", b"", "holds no rows"),
        ("tsv.gz", b"not gzip", "cannot be read"),
        ("jsonl", b"\n", "holds no rows"),
        ("jsonl", b'{"a": "one", "y": 1}\n{"a"\n', "is broken in line 2"),
        ("jsonl", b"[1]\n", "no JSON object in line 1"),
        ("jsonl", b'{"a": "one", "y": 1}\n\n{"a": "two", "y": null}\n', r"y: None is not a label \(.*line 3\)"),
        ("jsonl", b'{"a": "one", "y": 1}\n{"a": "two"}\n', r"y: None is not a label \(.*line 2\)"),
        ("jsonl", b'{"a": "one", "y": 1}\n{"a": "two", "y": 0.5}\n', "0.5 is not a class"),
        ("jsonl", b'{"a": "one", "y": 1}\n{"y": 2}\n', r"a: None is not a text \(.*line 2\)"),
        ("parquet", b"PAR1", "cannot be read"),
        ("csv", b"a,y\none,1\n ,2\n", r"text: '' is empty \(.*line 3\)"),
    ],
)
def test_broken_files(suffix: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    train, test = write_pair(tmp_path, suffix)
    train.write_bytes(content)
    with pytest.raises(UsageError, match=complaint):
        Task.from_files(train, test, "a", "y")


@pytest.mark.parametrize(
    ("suffix", "content", "complaint"),
    [
        ("csv", b"a,y\none,1\nt\0wo,2\n", "has a NUL character in line 3"),
        ("tsv", "a\ty\none\t1\ntwo\t2\n".encode("utf-16-le"), "has a NUL character in line 1"),
        (
            "jsonl",
            rb'{"a": "\ud83d\ude00", "y": 1}' + b"\n" + rb'{"a": "x\ud83d", "y": 2}',
            r"line 2 \('.ud83d' is half of",
        ),
        ("jsonl", rb'{"a": "x", "y": "\udfff"}', r"line 1 \('.udfff' is half of a surrogate pair; write both"),
        (
            "jsonl",
            b'{"a": "x", "y": 1, "z": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
            r"line 1 \(it is nested too deeply",
        ),
        ("jsonl", b'{"a": "x", "a": "z", "y": 1}', r"line 1 \(a name occurs twice: a, a, y"),
        ("jsonl", b'{"a": "x", "y": ' + b"1" * 5000 + b"}", "is broken in line 1"),
        ("jsonl", b'{"a": "x", "y": [1]}\n' * 2, r"y: \[1\] is not a class"),
    ],
)
def test_what_cannot_be_text_is_named(suffix: str, content: bytes, complaint: str, tmp_path: Path) -> None:
    train, test = write_pair(tmp_path, suffix)
    for broken in (train, test):
        held = broken.read_bytes()
        broken.write_bytes(content)
        with pytest.raises(UsageError, match=f"{broken.name}.*{complaint}|{complaint}.*{broken.name}"):
            Task.from_files(train, test, "a", "y")
        broken.write_bytes(held)


@pytest.mark.parametrize("number", ["1e39", "-1e39", "1" * 400])
def test_a_label_beyond_float32_is_not_stored_as_infinite(number: str, tmp_path: Path) -> None:
    train, test = write_pair(tmp_path, "jsonl")
    test.write_text(f'{{"a": "one", "y": 1}}\n{{"a": "two", "y": {number}}}\n')
    with pytest.raises(UsageError, match=r"is not a finite number \(.*held_out\.jsonl, line 2\)"):
        Task.from_files(train, test, "a", "y", regression=True)


def test_words_for_missing_values_are_text_where_the_column_is_text(tmp_path: Path) -> None:
    words = ["nan", "NA", "null", "None"]
    for suffix in ("csv", "tsv", "jsonl", "parquet"):
        records: list[dict[str, object]] = [{"a": word, "y": word} for word in words]
        task = Task.from_files(*write_pair(tmp_path, suffix, train=records, test=records), "a", "y")
        assert task.train["text_a"][:] == words
        assert task.label_names == ("NA", "None", "nan", "null")


def test_a_field_of_csv_may_be_long_and_the_limit_of_the_process_stays(tmp_path: Path) -> None:
    before, long = csv.field_size_limit(), "word " * 40_000
    records: list[dict[str, object]] = [{"a": long, "y": 1}, {"a": "short", "y": 2}]
    train, test = write_pair(tmp_path, "csv", train=records, test=records)
    assert Task.from_files(train, test, "a", "y").train["text_a"][0] == long
    train.write_text('a,y\n"open,1\n')
    with pytest.raises(UsageError, match="is broken in line"):
        Task.from_files(train, test, "a", "y")
    assert csv.field_size_limit() == before


def test_parquet_with_equal_names_or_bytes_is_named(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    train, test = write_pair(tmp_path, "parquet")
    text, labels = pyarrow.array([b"\xff", b"y"]).cast(pyarrow.binary()).view(pyarrow.string()), pyarrow.array([1, 2])
    parquet.write_table(pyarrow.table([text, labels], names=["a", "y"]), train)
    with pytest.raises(UsageError, match=r"mine\.parquet' cannot be read"):
        Task.from_files(train, test, "a", "y")
    parquet.write_table(pyarrow.table([labels, labels], names=["a", "a"]), train)
    with pytest.raises(UsageError, match=r"mine\.parquet' has two columns of one name"):
        Task.from_files(train, test, "a", "y")


@pytest.mark.parametrize("kind", ["classification", "regression", "generation"])
def test_one_row_is_not_a_test_set(kind: Any, tmp_path: Path) -> None:
    train, test = write_pair(tmp_path, "jsonl")
    test.write_text('\n{"a": "one", "y": 1}\n')
    with pytest.raises(UsageError, match=r"test_file: .* holds one row only \(.*held_out\.jsonl, line 2\)"):
        Task.from_files(train, test, "a", "y", kind=kind)


def test_a_null_in_parquet_is_named_by_row(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"a": "one", "y": 1.0}, {"a": "two", "y": None}]
    train, test = write_pair(tmp_path, "parquet", train=records)
    with pytest.raises(UsageError, match=r"is not a label \(.*mine\.parquet, row 2\)"):
        Task.from_files(train, test, "a", "y")
    with pytest.raises(UsageError, match=r"is not a finite number \(.*mine\.parquet, row 2\)"):
        Task.from_files(train, test, "a", "y", regression=True)


def test_training_data_is_no_test_data(tmp_path: Path) -> None:
    train, _ = write_pair(tmp_path, "csv")
    with pytest.raises(UsageError, match="is the training file too"):
        Task.from_files(train, train, "a", "y")


# --- real data --------------------------------------------------------------------------------------------------------
@pytest.mark.shared_data
@pytest.mark.skipif(not os.environ.get("PEFTPRUNE_DATA"), reason="PEFTPRUNE_DATA is unset; it names the data's folder")
@pytest.mark.parametrize("name", ["rte", "mrpc", "cola", "sst2", "stsb", "wnli"])
def test_the_official_files_have_the_official_sizes(name: str) -> None:
    info, task = TASKS[name], load_task(name)
    assert len(task.train) == info.train_size
    assert {split: len(data) for split, data in task.evaluation.items()} == info.evaluation_sizes
    rows = task.train[:]
    assert all(text.strip() for column in task.text for text in rows[column])
    if task.label_names is None:
        assert 0 <= min(rows["label"]) <= max(rows["label"]) <= 5
    else:
        assert set(rows["label"]) == set(range(task.num_labels))
