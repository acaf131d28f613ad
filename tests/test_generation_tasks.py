"""Generation tasks: official files, the hub, files of one's own; and the metrics of text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import peftprune
from peftprune import stats
from peftprune.errors import UsageError
from peftprune.stats.metrics import METRICS, check_libraries, check_metrics, load_metric
from peftprune.stats.text_metrics import final_number
from peftprune.study.arguments import load_tasks
from peftprune.tasks import TASKS, Task, load_task
from peftprune.tasks import load as loading
from peftprune.tasks.generation import GENERATION

TEXT_METRICS = [name for name, info in METRICS.items() if info.kind == "generation"]


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("shared_data") is None:
        monkeypatch.delenv("PEFTPRUNE_DATA", raising=False)
    monkeypatch.setattr(loading, "_hub_problem", lambda path: "no network in tests")


# --- files and hub ----------------------------------------------------------------------------------------------------
TRIPLES = [["Rome", "capital of", "Italy"], ["Rome", "on", "Tiber"]]
LINE = "Rome : capital of : Italy | Rome : on : Tiber"


def rows_of(name: str, *, hub: bool) -> dict[str, list[dict[str, Any]]]:
    """Training and test rows; the first two test rows share their source."""
    info = GENERATION[name]
    source, target = (info.hub_text[0], info.hub_targets[0]) if hub else (info.columns[0], info.targets[0])
    if info.triples:

        def notes(texts: list[str]) -> Any:
            if hub:
                return {"source": ["x"] * len(texts), "text": texts}
            return [{"source": "x", "text": text} for text in texts]

        return {
            "train": [{source: TRIPLES, target: notes(["one", "two"])}],
            "test": [{source: TRIPLES, target: notes(["a", "b"])}, {source: TRIPLES[:1], target: notes(["c"])}],
        }
    train = [{source: "s0", target: "one"}, {source: "s0", target: "two"}]
    return {"train": train, "test": [{source: s, target: t} for s, t in (("s1", "a"), ("s1", "b"), ("s2", "c"))]}


def write(name: str, root: Path) -> None:
    info, rows = GENERATION[name], rows_of(name, hub=False)
    assert info.evaluation_files is not None
    (root / name).mkdir(parents=True)
    for file, part in ((info.train_file, rows["train"]), (info.evaluation_files["test"], rows["test"])):
        path = root / name / file
        if path.suffix == ".csv":
            lines = [",".join(part[0]), *(",".join(row.values()) for row in part)]
            path.write_text("\n".join(lines) + "\n")
        elif path.suffix == ".json":
            path.write_text(json.dumps(part))
        else:
            path.with_name(path.name.removesuffix(".jsonl") + ".jsonl").write_text("\n".join(map(json.dumps, part)))


@pytest.mark.parametrize("name", GENERATION)
@pytest.mark.parametrize("packed", [False, True])
def test_official_files(name: str, packed: bool, tmp_path: Path) -> None:
    write(name, tmp_path)
    if packed:
        for path in list((tmp_path / name).iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    task = load_task(name, data_dir=tmp_path)
    first, other = (LINE, "Rome : capital of : Italy") if name == "dart" else ("s1", "s2")
    assert task.train[:] == {"text_a": [LINE if name == "dart" else "s0"] * 2, "label": [["one"], ["two"]]}
    assert task.evaluation["test"][:] == {"text_a": [first, other], "label": [["a", "b"], ["c"]]}
    assert (task.kind, task.evaluation_split, task.named) == ("generation", "official test", True)
    assert "{source}" in task.prompt
    check_metrics(task.metrics, "generation")


@pytest.mark.parametrize("name", GENERATION)
def test_the_hub_gives_the_same_task(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(name, tmp_path)
    local, info = load_task(name, data_dir=tmp_path), GENERATION[name]

    def stub(path: str, config: str | None, **revision: str) -> Any:
        assert (path, config, revision.get("revision")) == (info.hub_path, info.hub_config, info.hub_revision)
        return rows_of(name, hub=True)

    monkeypatch.setattr("datasets.load_dataset", stub)
    task = load_task(name)
    assert task.source.startswith(f"hub {info.hub_path}")
    assert task.fingerprint == local.fingerprint
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: {"train": [{"id": 1}], "test": []})
    with pytest.raises(UsageError, match=r"lacks the column .* on the hub. The hub's copy has changed"):
        load_task(name)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("train.jsonl", '{"question": "q"}', "has no column answer"),
        ("train.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q", "answer": " "}', "is not a text.*line 2"),
        ("train.jsonl", '{"question": 3, "answer": "a"}', "is not a text.*line 1"),
        ("test.jsonl", '{"question": "q"', "is broken in line 1"),
        ("test.jsonl", r'{"question": "q", "answer": ["a", "\ud800"]}', "line 1.*is half of a surrogate pair"),
    ],
)
def test_broken_files_are_named(file: str, content: str, complaint: str, tmp_path: Path) -> None:
    write("gsm8k", tmp_path)
    (tmp_path / "gsm8k" / file).write_text(content)
    with pytest.raises(UsageError, match=complaint):
        load_task("gsm8k", data_dir=tmp_path)


@pytest.mark.parametrize(
    "content",
    ['[{"tripleset": [["Rom', "[]", "[" * 10**5, '[{"tripleset": [], "annotations": [{"text": null}]}]',
     r'[{"tripleset": [], "annotations": [{"text": "\ud800"}]}]'],
)  # fmt: skip
def test_a_broken_file_of_triples_is_named(content: str, tmp_path: Path) -> None:
    write("dart", tmp_path)
    (tmp_path / "dart" / GENERATION["dart"].train_file).write_text(content)
    with pytest.raises(UsageError, match=r"dart-v1.1.1-full-train.json' is not a file of triples with annotations"):
        load_task("dart", data_dir=tmp_path)


@pytest.mark.shared_data
def test_real_files_have_their_published_sizes() -> None:
    for name in ("e2e", "dialogsum", "gsm8k"):
        task, info = load_task(name), TASKS[name]
        assert len(task.train) == info.train_size
        assert {split: len(rows) for split, rows in task.evaluation.items()} == info.evaluation_sizes
    references = [len(r) for r in load_task("dialogsum").evaluation["test"]["label"]]
    assert min(references) >= 2
    assert max(references) == 3


# --- files of one's own -----------------------------------------------------------------------------------------------
def test_own_files(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("from,to\na b,c d\n")
    (tmp_path / "test.jsonl").write_text('{"from": "a", "to": ["x", "y"]}\n{"from": "a", "to": ["z"]}\n')
    task = Task.from_files(tmp_path / "train.csv", tmp_path / "test.jsonl", "from", "to", kind="generation")
    assert task.evaluation["test"][:] == {"text_a": ["a"], "label": [["x", "y", "z"]]}
    assert task.metrics == ("rougeL", "rouge1", "rouge2", "bleu")
    assert task.files["kind"] == "generation"

    def load_own(options: dict[str, Any]) -> None:
        load_tasks(Task.from_files(tmp_path / "train.csv", tmp_path / "test.jsonl", **options), None)

    for given, complaint in (
        ({"text": "from,to"}, "does not name one column"),
        ({"label": "from"}, "is also the text column"),
        ({"label": "there"}, "is not a column of"),
        ({"metrics": ["accuracy"]}, "does not fit generation"),
        ({"kind": "translation"}, "is not a kind of task"),
        ({"regression": True}, "is not a kind of task beside regression"),
    ):
        asked = {"text": "from", "label": "to", "kind": "generation"} | given
        with pytest.raises(UsageError, match=complaint):
            load_own(asked)


def test_the_command_line_names_the_kind_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from peftprune.cli.app import app
    from peftprune.study.command import _option

    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(f"from,to\n{name},c d\n{name},e\n")
    asked: dict[str, Any] = {}

    def compare(**given: Any) -> None:
        asked.update(given)
        raise UsageError("seen")

    monkeypatch.setattr(peftprune, "compare", compare)
    files = ["--train-file", str(tmp_path / "train.csv"), "--test-file", str(tmp_path / "test.csv")]
    options = [
        "--text",
        "from",
        "--label",
        "to",
        "--kind",
        "generation",
        "--num-beams",
        "4",
        "--prompt",
        "Say {source}",
    ]
    result = CliRunner().invoke(app, ["compare", *files, *options])
    assert "seen" in result.output
    assert (asked["num_beams"], asked["prompt"], asked["task"].kind) == (4, "Say {source}", "generation")
    assert [part for name, value in asked["task"].files.items() for part in _option(name, value)] == [
        *files,
        *options[:6],
    ]


# --- metrics ----------------------------------------------------------------------------------------------------------
def corpus(seed: int = 0, n: int = 40) -> tuple[list[str], list[list[str]]]:
    rng = np.random.default_rng(seed)
    words = ["a", "b", "c", "d", "e", "f", ".", ",", "x"]
    predictions = [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(n)]
    return predictions, [[" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(2)] for _ in range(n)]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_bleu_is_sacrebleus_on_any_part_of_a_corpus(n: int) -> None:
    import sacrebleu

    for seed in range(5):
        predictions, references = corpus(seed, n)
        found = METRICS["bleu"].value(METRICS["bleu"].statistics(predictions, references))
        expected = sacrebleu.corpus_bleu(predictions, [[r[i] for r in references] for i in (0, 1)]).score
        assert 100 * found == pytest.approx(expected, abs=1e-9)


def test_rouge_is_the_mean_of_the_best_reference() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    predictions, references = corpus()
    for name in ("rouge1", "rouge2", "rougeL"):
        scorer = RougeScorer([name], use_stemmer=True)
        best = [
            max(scorer.score(r, p)[name].fmeasure for r in rs) for p, rs in zip(predictions, references, strict=True)
        ]
        found = load_metric(name).compute(predictions=predictions, references=references)
        assert found == {name: pytest.approx(np.mean(best))}


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_perfect_is_one_and_empty_is_nought(name: str) -> None:
    references = [["the total is 3 apples\n#### 1,000", "other words entirely\n#### 7"]]
    for text, expected in ((references[0][0], 1.0), ("", 0.0)):
        assert load_metric(name).compute(predictions=[text], references=references) == {name: pytest.approx(expected)}


@pytest.mark.parametrize(
    ("text", "number"),
    [("so\n#### 1,234", 1234), ("#### $-5.50.", -5.5), ("#### 18.0", 18), ("it is 18", None), ("#### none", None)],
)
def test_the_final_number(text: str, number: float | None) -> None:
    found = final_number(text)
    assert (None if found is None else float(found)) == number
    if number is not None:
        assert METRICS["exact_number"].statistics([text], [[f"#### {number}"]]).tolist() == [1.0]


def test_the_bootstrap_of_bleu_recomputes_the_corpus() -> None:
    """The mean of sentence scores would have another spread; the twin resamples sentences and asks for the corpus."""
    (a, references), (b, _) = corpus(0), corpus(1)
    one, two = (METRICS["bleu"].statistics(p, references) for p in (a, b))
    found = stats.paired_bootstrap(one, two, metric="bleu", resamples=2000)
    assert found.difference == pytest.approx(METRICS["bleu"].value(one) - METRICS["bleu"].value(two))
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(a), len(a)) for _ in range(1000)]
    twin = [METRICS["bleu"].value(one[d]) - METRICS["bleu"].value(two[d]) for d in draws]
    assert found.low == pytest.approx(np.quantile(twin, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(twin, 0.975), abs=0.01)
    seeds = stats.paired_bootstrap(np.stack([one, one]), np.stack([two, two]), metric="bleu", resamples=200)
    assert seeds.difference == pytest.approx(found.difference)


def test_a_library_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"'bleu' needs the package sacrebleu.*peftprune\[generation\]"):
        check_libraries(["exact_match", "bleu"])
