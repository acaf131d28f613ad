"""Small studies for the tests of reports and tables, and what an HTML file says when it is parsed."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import peftprune
from peftprune.comparison import Comparison
from peftprune.methods.lorpa import LoRPA
from peftprune.strategy.interface import RankPruningStrategy
from peftprune.strategy.plan import PruningPlan
from peftprune.strategy.spec import PaperSettings
from peftprune.strategy.view import StepView
from tests.helpers import classification_task, regression_task

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert('&amp;')"> a_b|c $5 100% {x} \\ ~^#"""
TEMPLATE = Path(peftprune.__file__).parent / "report/html/templates/report.html.j2"
RULES = re.findall("<li>(.+)</li>", TEMPLATE.read_text().partition('id="fairness"')[2].partition("</ol>")[0])
SETTINGS: dict[str, Any] = {"batch_size": 8, "learning_rate": 5e-3, "max_length": 32, "dtype": "float32"}


class Failing(RankPruningStrategy):
    """Stops in its third step, with a message that no page or table must take for its own."""

    name: ClassVar[str] = """fails <i>&"now"</i>|_"""

    def decide(self, view: StepView) -> PruningPlan:
        if view.step == 2:
            raise ValueError(HOSTILE)
        return PruningPlan()


@cache
def broad(model: Path) -> Comparison:
    """Two tasks, two seeds; methods that cut, grow, zero and share, and one that fails.

    All test files of a session read the same one; nobody may write to it.
    """
    methods: list[Any] = ["lora,lorpa(initial_rank=8),prilora(start_rank=1,final_rank=3,prune_every=3),lora-drop"]
    return peftprune.compare(
        [*methods, Failing],
        [classification_task(), classification_task(n=90, name="a<b>  &'c'")],
        model=model,
        budget="rank=2,steps=10",
        seeds=2,
        output_dir=model.with_name("broad-study"),
        **SETTINGS,
    )


class Released(LoRPA):
    """With a published setting that holds for any model."""

    def paper(self) -> PaperSettings:
        return PaperSettings(rank=8, scaling=1.0)


@cache
def paper(model: Path) -> Comparison:
    """Two budgets, one of them each method's published setting."""
    return peftprune.compare(
        ["lora", Released],
        classification_task(),
        model=model,
        budget=["rank=2,steps=6", "paper"],
        output_dir=model.with_name("paper-study"),
        **(SETTINGS | {"max_train_samples": 16, "epochs": 3}),
    )


def single(model: Path, folder: Path) -> Comparison:
    """One method, one seed, a regression task of two files."""
    return peftprune.compare(
        "lora", regression_task(folder), model=model, budget="rank=2,steps=4", output_dir=folder / "study", **SETTINGS
    )


class Number(NamedTuple):
    """A number of a table: the frame it is from, its place there, its exact value, and the text shown."""

    frame: str
    row: str
    column: str
    value: str
    text: str


class Page(HTMLParser):
    """Everything of a page that the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.numbers: list[Number] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self._frame = ""
        self._number: dict[str, str] | None = None
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if tag == "table":
            self._frame = found.get("data-frame", "")
        self._number = found if "data-value" in found else None
        self._script = found.get("id", "") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._number = self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
            return
        self.texts.append(data)
        if self._number is not None:
            place = (self._number[f"data-{name}"] for name in ("row", "column", "value"))
            self.numbers.append(Number(self._frame, *place, data))

    @property
    def text(self) -> str:
        """What is to be read, with single spaces."""
        return " ".join(" ".join(self.texts).split())
