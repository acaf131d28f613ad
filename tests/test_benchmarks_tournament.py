"""The tournament: its documents follow from the stored predictions alone, and leave nothing out."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.tournament.__main__ import RESULTS, app
from benchmarks.tournament.claims import CLAIMS, CONTROLS
from benchmarks.tournament.documents import FINDINGS, README, ROOT, stored, write
from benchmarks.tournament.tasks import ON_GPU, PILOTED, place
from peftprune.analysis.audit import audit
from peftprune.comparison import Comparison
from peftprune.methods.request import parse
from peftprune.study.packed import unpack

METHODS = yaml.safe_load((ROOT / "benchmarks" / "tournament.yaml").read_text())["methods"]
STUDIES = stored(RESULTS)
# The audit of a large study takes half a minute.
PACKED = [pytest.param(n, marks=[pytest.mark.slow] * (n in {"sst2", *ON_GPU})) for n in STUDIES]
PACKED += [f"pilot-{name}" for name in (*PILOTED, *(study for study in STUDIES if "-" not in study))]


def table(text: str, index: int = 0) -> dict[str, list[str]]:
    """Returns the cells of a study's table by method: of the first table, or of a later one."""
    rows = re.findall(r"\| method \| \w+ \| seeds .*?\n\|[-:|]+\n((?:\|.*\n)+)", text)[index]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in rows.splitlines()]
    return {re.sub(r"[` \\*]", "", row[0]): row[1:] for row in cells}


def scores_of(study: str) -> dict[str, dict[int, float]]:
    """Returns each method's accuracy (on STS-B Pearson's r) by seed, from the stored predictions with numpy alone."""
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for row in pd.read_parquet(place(RESULTS, study) / "arms.parquet").to_dict("records"):
        if row["result.json"] is None:
            continue
        arm, predicted = json.loads(row["result.json"]), pd.read_parquet(io.BytesIO(row["predictions"]))
        label, prediction = predicted["label"], predicted["prediction"]
        score = np.corrcoef(label, prediction)[0, 1] if study == "stsb" else np.mean(label == prediction)
        scores[arm["label"]][arm["seed"]] = float(score)
    return scores


def number(cell: str) -> float:
    return float(cell.split(" (")[0].replace("−", "-"))


@pytest.mark.slow
def test_the_documents_are_up_to_date() -> None:
    assert write(RESULTS, check=True) == []


@pytest.mark.parametrize(("document", "study"), [(README, STUDIES[0]), *((FINDINGS, name) for name in STUDIES)])
def test_a_table_follows_from_the_predictions(document: Path, study: str) -> None:
    scores = scores_of(study)
    printed = table((ROOT / document).read_text(), STUDIES.index(study))
    assert set(printed) == set(scores)
    if study == STUDIES[0]:
        assert set(printed) == {spec.label for spec in parse(METHODS)}
    for method, seeds in scores.items():
        mean, seeds_printed, difference = printed[method][:3]
        assert int(seeds_printed) == len(seeds)
        assert float(mean.split(" ±")[0]) == pytest.approx(np.mean(list(seeds.values())), abs=5.1e-4)
        if method != "lora":
            shared = sorted(set(seeds) & set(scores["lora"]))
            expected = np.mean([seeds[s] - scores["lora"][s] for s in shared])
            assert number(difference) == pytest.approx(expected, abs=5.1e-5)


def test_the_parts_of_a_gain_follow_from_the_predictions() -> None:
    scores = {method: np.mean([*seeds.values()]) for method, seeds in scores_of("mrpc").items()}
    text = (ROOT / FINDINGS).read_text()
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\S+ \(.*?\)) \| (\S+ \(.*?\)) \| (\S+ \(.*?\)) \| [\d.]+ \|$", text, re.MULTILINE
    )
    assert {method for method, *_ in rows} == {"adalora", "eva", "lora-drop", "prilora"}
    for method, *cells in rows:
        suffix = "" if method == "adalora" else f":{method}"
        transplant, shuffled = (scores[control + suffix] for control in ("transplant", "shuffled"))
        expected = [transplant - scores["lora"], transplant - shuffled, scores[method] - transplant]
        assert [number(cell) for cell in cells] == pytest.approx(expected, abs=5.1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_the_packed_results_agree_with_themselves(name: str, tmp_path: Path) -> None:
    unpack(place(RESULTS, name), tmp_path / name, request=True)
    study = Comparison.load(tmp_path / name)
    runs = study.runs()
    left = runs[runs["status"] == "pending"]
    assert audit(study) == [f"{row.method}, seed {row.seed}: has no result (not trained)" for row in left.itertuples()]


def test_every_question_is_about_methods_of_the_study() -> None:
    asked = {label for question in (*CLAIMS, *CONTROLS) for label in (question.method, question.baseline)}
    assert asked <= {spec.label for spec in parse(METHODS)}


def test_an_unknown_task_is_refused() -> None:
    run = CliRunner().invoke(app, ["run", "--data-dir", ".", "--task", "sst3"])
    assert run.exit_code == 2
    assert "sst3" in run.output
