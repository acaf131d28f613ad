"""Tables as text: each format reads back as the frames it was made of."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from peftprune.analysis.frames import Frames
from peftprune.comparison import Comparison
from peftprune.errors import UsageError
from peftprune.report.text import _csv, _latex_text, table_text
from tests.report_studies import Failing, broad, single


@pytest.fixture(scope="module")
def study(tiny_bert: Path) -> Comparison:
    return broad(tiny_bert)


def cells(line: str) -> list[str]:
    """The fields of a row of a pipe table."""
    return [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_has_a_titled_table_for_each_task_and_budget(study: Comparison) -> None:
    blocks = table_text(study, "markdown").split("**")[1:]
    titles, tables = blocks[::2], blocks[1::2]
    assert [t.replace("\\", "") for t in titles] == [
        f"{' '.join(task.split())}, budget {budget.replace(',', ', ')}"
        for task in study.tasks
        for budget in study.budgets
    ]
    frame = study.table()
    for i, text in enumerate(tables):
        head, _, *rows = [cells(line) for line in text.strip().splitlines()]
        assert {len(row) for row in rows} == {len(head)}
        *shown, reference = rows
        assert [row[0].replace("\\", "") for row in shown] == study.methods
        assert reference[0].startswith("majority")
        for row, (_, stored) in zip(shown, frame.iloc[5 * i : 5 * i + 5].iterrows(), strict=True):
            if stored["seeds"]:
                mean, _, std = row[1].partition(" ± ")
                assert float(mean) == pytest.approx(stored["accuracy_mean"], abs=5.1e-5)
                assert float(std) == pytest.approx(stored["accuracy_std"], abs=5.1e-5)
                assert row[head.index("final params")] == f"{stored['final_params']:,.0f}"
            else:
                assert row[1] == "–"
    assert "cannot reach significance" in tables[0] or "not distinguishable" in tables[0]


def test_latex_is_balanced_and_escaped(study: Comparison) -> None:
    text = table_text(study, "latex")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\end{table}") == 2
    assert r"$\pm$" in text
    assert not re.search(r"(?<!\\)[%#_]", text)
    for block in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{([lr]+)\}", block)[1])  # type: ignore[index]
        body = block.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
        rows = [row for row in body.splitlines() if row.endswith(r"\\")]
        # A header, five methods and the majority class.
        assert len(rows) == 7
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {columns}


def test_latex_specials_one_by_one() -> None:
    assert _latex_text("a_b & 5% of $x #1 {y}") == r"a\_b \& 5\% of \$x \#1 \{y\}"
    assert _latex_text("\\ ~ ^ < > |") == (r"\textbackslash{} \textasciitilde{} \textasciicircum{} $<$ $>$ $|$")
    assert _latex_text("−0.1 ± 0.2\n–") == r"$-$0.1 $\pm$ 0.2 --"


def test_csv_reads_back_bit_for_bit(study: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(table_text(study, "csv"))))
    table, against = study.table(), study.against()
    against = against[against["metric"] == "accuracy"].set_index(["task", "budget", "method"])
    ends = ("low", "high", "low_holm", "high_holm")
    names = {**{f"difference_{end}": end for end in ends}, "paired_seeds": "seeds"}
    compared = 0
    for row, (_, stored) in zip(rows, table.iterrows(), strict=True):
        assert list(row)[: len(stored)] == list(stored.index)
        assert_same(row, stored)
        place = (row["task"], row["budget"], row["method"])
        if place in against.index:
            beside = {n: row[n] for n in list(row)[len(stored) :]}
            assert_same({names.get(n, n): value for n, value in beside.items()}, against.loc[place])
            compared += 1
    assert compared == len(against) == 6


def assert_same(texts: dict[str, str], values: pd.Series[Any]) -> None:
    """A row of the file holds these values, to the bit; what is missing is empty."""
    for name, value in values.items():
        text = texts[str(name)]
        if isinstance(value, str) or pd.isna(value):
            assert text == (value if isinstance(value, str) else "")
        else:
            assert float(text).hex() == float(value).hex(), name


def test_json_holds_the_frames_with_null_for_what_is_missing(study: Comparison) -> None:
    found = json.loads(table_text(study, "json", baseline="prilora"))
    frames = {
        "table": study.table(),
        "references": Frames(study).references,
        "against": study.against("prilora"),
        "pooled": study.pooled("prilora"),
        "average_ranks": study.average_ranks(),
    }
    assert list(found) == list(frames)
    for name, frame in frames.items():
        assert len(found[name]) == len(frame) > 0
        for shown, stored in zip(found[name], frame.to_dict("records"), strict=True):
            assert list(shown) == list(stored)
            for column, value in stored.items():
                absent = value is None or (isinstance(value, float) and not math.isfinite(value))
                assert shown[column] == (None if absent else value)


def test_a_study_of_one_method(tiny_bert: Path, tmp_path: Path) -> None:
    small = single(tiny_bert, tmp_path)
    head = table_text(small, "markdown").splitlines()[2]
    assert cells(head) == ["method", "pearson", "spearman", "seeds", "final params", "peak params", "TFLOP", "seconds"]
    assert json.loads(table_text(small, "json"))["against"] == []
    assert table_text(small, "csv").count("\n") == 2
    assert r"\midrule" in table_text(small, "latex")


def test_hostile_names_stay_in_their_fields(study: Comparison) -> None:
    for line in table_text(study, "markdown").splitlines():
        if line.startswith("| fails"):
            assert "\\<i>" in line
    assert Failing.name in table_text(study, "csv").replace('""', '"')


def test_no_cell_of_csv_is_a_formula() -> None:
    texts = ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-1.5", "+2e3", "a\r=1", ""]
    frame = pd.DataFrame({"=name": texts, "number": [-0.1 * n for n in range(len(texts))]})
    rows = list(csv.reader(io.StringIO(_csv(frame), newline="")))
    assert rows[0] == ["'=name", "number"]
    assert [row[0] for row in rows[1:]] == [f"'{t}".replace("\r", "\n") for t in texts[:7]] + [
        "-1.5",
        "+2e3",
        "a\n=1",
        "",
    ]
    assert [float(row[1]) for row in rows[1:]] == frame["number"].tolist()


def test_an_unknown_format_is_refused_with_the_known_ones(study: Comparison) -> None:
    with pytest.raises(UsageError, match=r"format: 'xlsx' is unknown.*markdown, latex, csv, json"):
        table_text(study, "xlsx")
    with pytest.raises(UsageError, match="baseline"):
        table_text(study, "json", baseline="unheard")
