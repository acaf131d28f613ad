"""The report: what it shows is what the store holds, it needs nothing else, and nothing in a study can break it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from peftprune.analysis import frames as analyses
from peftprune.analysis.frames import Frames
from peftprune.analysis.pooled import average_ranks, pooled
from peftprune.analysis.published import published_for
from peftprune.comparison import Comparison
from peftprune.errors import UsageError
from peftprune.report import findings, write_report
from peftprune.report.findings import few
from peftprune.report.html.explorer import _colours, script_json
from peftprune.report.html.svg import to_svg
from peftprune.stats import Verdict
from peftprune.study import store
from tests.report_studies import HOSTILE, RULES, Failing, Page, broad, paper, single
from tests.stored import store as stored_study

ROOT = Path(__file__).parent.parent
LINKS = ("src", "href", "xlink:href", "srcset", "action", "formaction", "poster", "data", "background", "ping")


@pytest.fixture(scope="module")
def study(tiny_bert: Path) -> Comparison:
    return broad(tiny_bert)


@pytest.fixture(scope="module")
def small(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return single(tiny_bert, tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def html(study: Comparison, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(study, tmp_path_factory.mktemp("report") / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def copy_without(study: Comparison, folder: Path, pattern: str, kept: str = "config.json") -> Comparison:
    """A copy of the study in which the arms that match have neither result nor error."""
    shutil.copytree(study.path, folder)
    for arm in (folder / "arms").glob(pattern):
        for file in arm.glob("*.json*"):
            if file.name != kept:
                file.unlink()
    return Comparison.load(folder)


# --- numbers ----------------------------------------------------------------------------------------------------------


def shown(page: Page, name: str) -> dict[tuple[str, str], str]:
    """(row, column) to the exact value, of the tables that show a frame."""
    return {(n.row, n.column): float(n.value).hex() for n in page.numbers if n.frame == name}


def stored(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(row, column) to the exact value, of all finite numbers in a frame but the p of a single seed."""
    if "p_holm" in frame and "seeds" in frame:
        frame = frame.assign(**{name: frame[name].where(frame["seeds"] > 1) for name in ("p", "p_holm")})
    return {
        (str(row), column): float(value).hex()
        for column in frame.columns
        for row, value in frame[column].items()
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    }


def ledgers(study: Comparison) -> pd.DataFrame:
    rows = [key | result["ledger"] for key, folder in study.arms() if (result := folder.result()) is not None]
    return pd.DataFrame(rows).drop(columns=["task", "budget", "method", "phase_seconds"])


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        # What equals the final parameters by definition stands in the ledger only.
        ("table", ["unique_params"]),
        ("against", []),
        ("mcnemar", []),
        ("pooled", []),
        ("average_ranks", []),
        ("frontier", []),
        ("decisions", []),
        ("stability", []),
        ("costs", []),
        ("ledger", []),
    ],
)
def test_every_number_of_the_store_is_shown_bit_for_bit(
    study: Comparison, page: Page, name: str, hidden: list[str]
) -> None:
    frame = ledgers(study) if name == "ledger" else getattr(study, name)()
    assert not frame.empty
    assert shown(page, name) == stored(frame.drop(columns=hidden))


def test_every_text_shown_is_its_number_rounded(page: Page) -> None:
    assert len(page.numbers) > 500
    for number in page.numbers:
        text = number.text.replace("−", "-").replace(",", "")
        if text.startswith("<"):
            assert float(number.value) < float(text[1:])
            continue
        digits = 0 if "e" in text else len(text.partition(".")[2])
        near = [abs(float(number.value) * f - float(text)) <= 0.5001 * 10**-digits for f in (1, 1e-6, 1e-12)]
        assert any(near), number


def test_settings_and_surroundings_are_those_of_the_study(study: Comparison, page: Page) -> None:
    values = {(n.frame, n.row): float(n.value) for n in page.numbers if n.column == "value"}
    numbers = {k: v for k, v in study.request["settings"].items() if isinstance(v, int | float)}
    assert {k: values["settings", k] for k in numbers} == numbers
    assert values["study", "sites"] == study.request["sites"]
    assert values["study", "threads"] == study.request["threads"]
    for version in study.request["versions"].values():
        assert version in page.text
    for task in study.request["tasks"]:
        assert task["source"] in page.text
        assert task["evaluation_split"] in page.text


def test_published_figures_stand_apart_and_are_those_of_the_files(small: Comparison, tmp_path: Path) -> None:
    request = {
        **small.request,
        "tasks": [small.request["tasks"][0] | {"name": "mrpc"}],
        "arms": [arm | {"task": "mrpc"} for arm in small.request["arms"]],
    }
    found = Page(write_report(Comparison(small.path, request), tmp_path / "report.html").read_text())
    frame = published_for(["mrpc"])
    assert not frame.empty
    assert shown(found, "published") == stored(frame)
    assert "not comparable with this study number by number" in found.text


# --- self-contained ---------------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_from_outside(html: str, page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "img")
        for name in LINKS:
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        if tag == "link":
            assert attributes["href"] == "data:,"
    assert all(found.startswith("#") for found in re.findall(r"url\(['\"]?([^)]*)", html))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    script = page.scripts[""]
    for means in ("fetch", "XMLHttpRequest", "WebSocket", "EventSource", "sendBeacon", "import", "http", "innerHTML"):
        assert means not in script


@pytest.mark.slow
def test_it_is_small_and_the_same_store_gives_the_same_bytes(study: Comparison, html: str, tmp_path: Path) -> None:
    again = write_report(study, tmp_path / "new" / "again.html")
    assert again.read_bytes() == html.encode()
    assert again.stat().st_size < 5_000_000


def test_identifiers_are_unique_and_every_reference_finds_one(html: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    used |= {i for _, a in page.tags for i in a.get("aria-labelledby", "").split()}
    used |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(ids)


def test_tables_have_captions_and_scopes_and_figures_names(page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    # All but the explorer's grid, which has a label.
    assert tags.count("caption") == tags.count("table") - 1
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert all(a.get("role") == "img" and a.get("aria-labelledby") for tag, a in page.tags if tag == "svg")
    assert tags.count("svg") >= 5
    assert tags.count("h1") == 1
    assert ("html", {"lang": "en"}) in page.tags
    headings = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in pairwise(headings))


# --- names and messages -----------------------------------------------------------------------------------------------


def test_labels_and_messages_are_text_whatever_they_hold(study: Comparison, page: Page) -> None:
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2
    assert "i" not in tags
    assert Failing.name in page.text
    assert "a<b> &'c'" in page.text
    assert study.failures
    for arm, message in study.failures.items():
        assert " ".join(arm.split()) in page.text
        assert HOSTILE in message
        assert " ".join(message.split()) in page.text


def test_json_cannot_end_its_script() -> None:
    value = ["</script>", "<!--", "&", "a\u2028b"]
    text = str(script_json(value))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_a_figure_follows_the_page_and_its_texts_stay_texts() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot(facecolor="white")
    axes.plot([0, 1], color="#000000")
    axes.text(0, 0, 'ink: #000000 id="a" url(#b)', color="#010101")
    svg = str(to_svg(figure, "one", "a < b"))
    texts = re.findall(r">([^<>]*)</text>", svg)
    assert 'ink: #000000 id="a" url(#b)' in texts
    assert "#000000" not in re.sub(r"<text.*?</text>", "", svg, flags=re.DOTALL)
    assert "fill: #ffffff" not in svg
    assert "#010101" in svg
    assert '<title id="one-title">a &lt; b</title>' in svg
    assert all(found.startswith("one-") for found in re.findall(r'<[^>]*\bid="([^"]+)"', svg))
    assert svg == str(to_svg(figure, "one", "a < b"))


# --- explorer ---------------------------------------------------------------------------------------------------------


def replayed(arm: dict[str, Any]) -> dict[str, list[Any]]:
    state: dict[str, list[Any]] = {}
    for event in arm["events"]:
        state |= event["sites"]
    return state


def test_the_explorer_ends_at_the_final_allocation(study: Comparison, page: Page) -> None:
    data = json.loads(page.scripts["explorer-data"])
    names = [site["name"] for site in data["sites"]]
    stored = list(study.arms())
    assert len(data["arms"]) == len(stored) == 20
    shared = 0
    for arm, (key, folder) in zip(data["arms"], stored, strict=True):
        assert arm["key"] == key
        result = folder.result()
        if result is None:
            assert arm["events"] == []
            assert arm["status"].startswith("failed")
            continue
        state = replayed(arm)
        assert len(state) == len(result["allocation"])
        for site in result["allocation"]:
            rank, density, others, _ = state[str(names.index(site["site"]))]
            assert rank == site["rank"]
            assert [names[i] for i in others] == site["shared_with"]
            assert str(rank) in data["colours"] or rank == 0
            shared += bool(others)
            if density is not None:
                assert 0 <= density <= 1
    assert shared


def test_the_explorer_holds_every_event_at_full_precision(study: Comparison, page: Page) -> None:
    data = json.loads(page.scripts["explorer-data"])
    names = [site["name"] for site in data["sites"]]
    seen = set()
    for arm, (_, folder) in zip(data["arms"], study.arms(), strict=True):
        if folder.result() is None:
            continue
        for event, stored in zip(arm["events"], folder.allocation(), strict=True):
            assert {n: event[n] for n in ("step", "phase", "reason")} == {
                n: stored[n] for n in ("step", "phase", "reason")
            }
            assert {names[int(i)]: score for i, score in event["scores"].items()} == stored["scores"]
            sites = {
                names[int(i)]: {
                    "rank": rank,
                    "density": density,
                    "shared_with": [names[j] for j in others],
                    "components": components,
                }
                for i, (rank, density, others, components) in event["sites"].items()
            }
            assert sites == stored["sites"]
            seen |= {n for s in sites.values() for n in ("density", "components") if s[n] is not None}
            seen |= {"scores"} if event["scores"] else set()
    assert seen == {"density", "components", "scores"}


def test_ranks_can_be_read_on_every_colour() -> None:
    for count in (1, 2, 9, 40):
        for _, *pair in _colours(list(range(count + 1))):
            light, dark = sorted(map(luminance, pair), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first_and_names_what_failed(page: Page) -> None:
    text = page.text
    first = text.index("Do lorpa, prilora")
    landmarks = ("No method is distinguishable", "Scores, sizes and cost", "What every arm held", RULES[0])
    places = [first, *(text.index(found, first) for found in landmarks)]
    assert places == sorted(places)
    assert f"Failed, therefore not counted: {Failing.name} (seed 0) and {Failing.name} (seed 1)." in text
    assert "The smallest true difference in accuracy that a study of this size detects with a power of 0.8 is" in text


BETTER, WORSE, OPEN = Verdict.BETTER, Verdict.WORSE, Verdict.NOT_DISTINGUISHABLE
POWERLESS = Verdict.CANNOT_REACH_SIGNIFICANCE


@pytest.mark.parametrize(
    ("verdicts", "headline"),
    [
        (
            [BETTER, WORSE, OPEN],
            "lorpa is better than lora; prilora is worse than lora; lora-drop is not distinguishable from it.",
        ),
        ([BETTER] * 3, "lorpa, prilora and lora-drop are better than lora."),
        ([OPEN] * 3, "No method is distinguishable from lora."),
        (
            [POWERLESS] * 3,
            "This study cannot distinguish any method from lora: it cannot reach significance with 2 seeds.",
        ),
    ],
)
def test_verdicts_in_words(study: Comparison, verdicts: list[Verdict], headline: str) -> None:
    frames = Frames(next(study.cells()))
    frame = frames.against[frames.against["metric"] == "accuracy"]
    frames.against = frame.assign(verdict=verdicts, difference=[0.3, 0.2, 0.1]).drop(columns="learned", errors="ignore")
    answer = findings.cell_answer(frames, frames.study)
    assert answer.headline == headline
    assert [f.verdict for f in answer.findings] == verdicts
    words = {
        BETTER: "better",
        WORSE: "worse",
        OPEN: "not distinguishable at this size",
        POWERLESS: "cannot reach significance with 2 seeds",
    }
    assert [f.words for f in answer.findings] == [words[v] for v in verdicts]
    assert findings.in_words(frames.against)["verdict"].tolist() == [words[v] for v in verdicts]
    frames.against["difference"] = [0.1, 0.3, 0.2]
    assert [f.method for f in findings.cell_answer(frames, frames.study).findings] == ["prilora", "lora-drop", "lorpa"]


@pytest.mark.slow
def test_another_baseline(tiny_bert: Path, tmp_path: Path) -> None:
    study = paper(tiny_bert)
    found = Page(write_report(study, tmp_path / "report.html", baseline="lorpa").read_text())
    assert "Does lora perform better than lorpa on tiny" in found.text
    assert "Differences to lorpa" in found.text
    assert shown(found, "against") == stored(study.against("lorpa"))
    with pytest.raises(UsageError, match="baseline"):
        write_report(study, tmp_path / "report.html", baseline="unheard")


def test_a_title_names_a_few_methods_and_counts_many() -> None:
    assert few(["lora", "lorpa"]) == "lora and lorpa"
    assert few(["lora"] * 27) == "27 methods"


def test_the_rules_are_those_of_the_documentation(page: Page) -> None:
    section = (ROOT / "docs/fairness.md").read_text().partition("## What is kept equal")[2].partition("\n## ")[0]
    assert re.findall(r"^\d\. (.*)$", section, re.MULTILINE) == RULES
    for rule in RULES:
        assert rule in page.text


def test_methods_say_where_their_defaults_are_from(page: Page) -> None:
    assert "Mathematics 2024, 12(23), 3744" in page.text
    assert "convention" in page.text
    assert "Not a registered method of peftprune" in page.text


# --- other studies ----------------------------------------------------------------------------------------------------


def test_one_method_and_one_seed(small: Comparison, tmp_path: Path) -> None:
    found = Page(write_report(small, tmp_path / "report.html").read_text())
    assert "The study has one method, lora: there is nothing to compare it with." in found.text
    assert "95 %: –" in found.text
    assert "Differences to" not in found.text
    assert "pearson" in found.text
    command = next(text for text in found.texts if text.startswith("peftprune compare"))
    assert "--regression" in command


def test_methods_of_another_size_are_named_beside_the_verdicts(tmp_path: Path) -> None:
    study = stored_study(tmp_path, methods=("plain", "x-small"))
    (cell,) = study.cells()
    (said,) = [limit for limit in findings.cell_answer(Frames(cell), cell).limits if "equal size" in limit]
    row = study.runs().set_index("method").loc["x-small"].iloc[0]
    numbers = f"{row['final_params']:,} parameters, the budget allows {row['budget_params']:,}"
    assert said == f"Not at equal size: x-small has {numbers} (cannot meet a budget)."


@pytest.mark.parametrize("budget", ["rank=8", "paper"])
def test_results_under_one_budget_leave_out_who_does_not_meet_it(budget: str, tmp_path: Path) -> None:
    methods, held = ("plain", "cut", "x-small"), {"cut"} if budget == "rank=8" else {"cut", "x-small"}
    study = stored_study(tmp_path, methods=methods, tasks=("rte", "mrpc"), seeds=range(2), budgets=("rank=8",))
    runs = study.runs().assign(budget=budget)
    study.request["budgets"][0]["label"] = budget  # type: ignore[index]
    assert set(pooled(study, runs, "plain")["method"]) == held
    assert set(average_ranks(study, runs)["method"]) == {"plain", *held}


def test_the_headline_keeps_methods_outside_the_budget_apart(tmp_path: Path) -> None:
    study = stored_study(tmp_path, methods=("plain", "cut", "x-small"))
    (cell,) = study.cells()
    answer = findings.cell_answer(Frames(cell), cell)
    assert [f.method for f in answer.findings] == ["x-small", "cut"], "both are compared in pairs"
    bound, _, outside = answer.headline.partition(" Outside the budget: ")
    assert bound
    assert outside
    assert "x-small" not in bound
    assert "cannot meet a budget" in study.report(tmp_path / "table.md").read_text()


def test_unfinished_arms(tiny_bert: Path, tmp_path: Path) -> None:
    study = paper(tiny_bert)
    part = copy_without(study, tmp_path / "part", "lora-s*")
    text = Page(write_report(part, tmp_path / "part.html").read_text()).text
    assert "No run of lora has finished here, so there is nothing to compare with." in text
    assert "Not finished, therefore not counted: lora (seed 0)." in text
    none = copy_without(study, tmp_path / "none", "*", kept="")
    found = Page(write_report(none, tmp_path / "none.html").read_text())
    assert "explorer-data" not in found.scripts
    assert "Pending" in found.text
    assert not [n for n in found.numbers if n.frame in ("against", "ledger", "frontier")]


def test_several_budgets(tiny_bert: Path, tmp_path: Path) -> None:
    study = paper(tiny_bert)
    assert not study.failures
    found = Page(write_report(study, tmp_path / "report.html").read_text())
    for name in ("table", "against", "frontier", "stability"):
        frame = getattr(study, name)().drop(columns="unique_params", errors="ignore")
        assert shown(found, name) == stored(frame), name
    assert {row for row, column in shown(found, "table") if column == "budget_difference"} == {"2", "3"}
    assert "each method's published setting" in found.text
    assert "is the exception" in found.text
    assert "Arms trained with other settings" in found.text


ANALYSES = (
    *("arm_rows", "method_rows", "site_rows", "ledger_rows", "trace", "history", "costs"),
    *("against", "mcnemar", "pooled", "average_ranks", "frontier", "stability", "decisions"),
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each result and error file is read, and each analysis computed."""
    found: Counter[str] = Counter()

    def count(module: ModuleType, name: str, key: Callable[..., str]) -> None:
        function = getattr(module, name)

        def counted(*args: Any) -> Any:
            found[key(*args)] += 1
            return function(*args)

        monkeypatch.setattr(module, name, counted)

    count(store, "_read_valid", lambda path, *_: str(path))
    count(store, "read_jsonl", str)
    for name in ANALYSES:
        count(analyses, name, lambda *_, name=name: name)
    return found


def test_a_report_reads_each_file_and_computes_each_analysis_once(
    study: Comparison, tmp_path: Path, calls: Counter[str]
) -> None:
    write_report(study, tmp_path / "report.html")
    assert set(calls.values()) == {1}
    files = {str(folder.path / "result.json") for _, folder in study.arms()}
    assert len(files) == 20
    assert calls.keys() >= {*files, *ANALYSES}


def test_a_comparison_shows_what_is_stored_now(study: Comparison, tmp_path: Path, calls: Counter[str]) -> None:
    part = copy_without(study, tmp_path / "part", "lora-s0*")
    assert (part.runs()["status"] == "done").sum() == 14
    shutil.copytree(study.path, part.path, dirs_exist_ok=True)
    assert (part.runs()["status"] == "done").sum() == 16
    assert len(part.frontier()) == 8
    assert calls[str(part.arm("lora", 1, task="tiny").path / "result.json")] == 3


def test_a_file_that_cannot_be_written_is_named(small: Comparison, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match=r"path: .*taken"):
        write_report(small, tmp_path / "taken")
