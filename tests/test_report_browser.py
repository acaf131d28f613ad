"""The report in a browser, opened from disk: the explorer follows the store, and the page is legible everywhere."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftprune.analysis.frames import Frames
from peftprune.comparison import Comparison
from peftprune.report import write_report
from peftprune.report.html.leaderboard import render
from tests.report_studies import Failing, broad
from tests.stored import store

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("background-networking", "component-update", "sync", "quic")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
PHONE = {"width": 390, "height": 844}

if importlib.util.find_spec("playwright") is None:
    REASON = "playwright is not installed; it comes with the extra dev"
elif CHROMIUM is None:
    REASON = "no Chromium is installed; Debian's package is called chromium"
else:
    REASON = ""
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(REASON), reason=REASON)]


@pytest.fixture(scope="module")
def study(tiny_bert: Path) -> Comparison:
    return broad(tiny_bert)


@pytest.fixture(scope="module")
def report(study: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(study, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


class Tab:
    """The report in a tab of its own; anything it asks for, logs or trips over is kept."""

    def __init__(self, browser: Any, report: Path, **options: Any) -> None:
        self.asked: list[str] = []
        self.trouble: list[str] = []
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.goto(report.as_uri())

    def choose(self, **wanted: Any) -> None:
        """Pick an arm."""
        for name, value in wanted.items():
            self.page.select_option(f'select[name="{name}"]', label=str(value))

    def detail(self, field: str) -> tuple[str, str | None]:
        """A field of the details: its text, and its exact value."""
        place = self.page.locator(f'#explorer-details [data-field="{field}"]')
        return place.inner_text(), place.get_attribute("data-value")

    @property
    def focused(self) -> int | None:
        """The site that has the focus."""
        return self.page.evaluate("document.activeElement.dataset.site ?? null")


@pytest.fixture
def tab(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Tab]:
    found = Tab(browser, report, **getattr(request, "param", {}))
    yield found
    assert [url for url in found.asked if not url.startswith("data:")] == [report.as_uri()]
    assert found.trouble == []
    found.context.close()


def states(folder: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each event of an arm, and the state of all its sites after it, read from the store."""
    now: dict[str, Any] = {}
    return [(event, now := now | event["sites"]) for event in folder.allocation()]


# --- explorer ---------------------------------------------------------------------------------------------------------


def test_the_page_opens_from_disk_without_a_word(tab: Tab) -> None:
    assert tab.page.title().startswith("peftprune: lora")
    assert tab.page.is_visible("#explorer-panel")


@pytest.mark.parametrize(
    ("method", "seed", "task"),
    [("lorpa", 0, "tiny"), ("prilora", 1, "tiny"), ("lora-drop", 0, "a<b>  &'c'"), ("lora", 1, "tiny")],
)
def test_every_event_shows_what_the_store_holds(tab: Tab, study: Comparison, method: str, seed: int, task: str) -> None:
    tab.choose(task=task, method=method, seed=seed)
    page, slider = tab.page, tab.page.locator('input[name="event"]')
    course = states(study.arm(method, seed, task=task))
    assert slider.get_attribute("max") == str(len(course) - 1)
    slider.focus()
    page.keyboard.press("Home")
    for position, (event, state) in enumerate(course):
        if position:
            slider.focus()
            page.keyboard.press("ArrowRight")
        status = page.inner_text("#explorer-status")
        when = f"After step {event['step']} of 10" if event["step"] else "Before training"
        assert status == f"{when}, phase {event['phase']}: {event['reason']} (event {position + 1} of {len(course)})"
        cells = page.locator(".site")
        assert cells.all_inner_texts() == [
            str(state[name]["rank"]) for name in cells.evaluate_all(_NAMES.replace("FIELD", "name"))
        ]
        for name in list(state)[position % 3 :: 5]:
            page.locator(f'.site[aria-label^="{name}:"]').focus()
            now = state[name]
            assert tab.detail("name")[0] == name
            assert tab.detail("rank") == (str(now["rank"]), str(now["rank"]))
            for field, value in (("density", now["density"]), ("score", event["scores"].get(name))):
                text, exact = tab.detail(field)
                if value is None:
                    assert (text, exact) == ("–", None)
                else:
                    assert exact is not None
                    assert float(exact) == value
                    assert float(text) == pytest.approx(value, rel=1e-3)
            assert tab.detail("shared")[0] == (", ".join(now["shared_with"]) or "–")
            held = "all" if now["components"] is None else ", ".join(map(str, now["components"])) or "none"
            assert tab.detail("components")[0] == held
    shared = {n for n, s in course[-1][1].items() if s["shared_with"]}
    marked = page.locator(".site.shared").evaluate_all(_NAMES.replace("FIELD", "name"))
    assert set(marked) == shared
    assert bool(shared) == (method == "lora-drop")


_NAMES = """found => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  return found.map((b) => data.sites[Number(b.dataset.site)].FIELD);
}"""


def test_the_grid_is_walked_by_arrow_keys(tab: Tab) -> None:
    page = tab.page
    tab.choose(method="lora-drop")
    page.locator('input[name="event"]').focus()
    page.keyboard.press("Tab")
    first = tab.focused
    assert first is not None
    layer, kind = (page.locator(":focus").evaluate_all(_NAMES.replace("FIELD", f)) for f in ("layer", "kind"))
    assert layer == [1]
    page.keyboard.press("ArrowDown")
    assert page.locator(":focus").evaluate_all(_NAMES.replace("FIELD", "layer")) == [0]
    assert page.locator(":focus").evaluate_all(_NAMES.replace("FIELD", "kind")) == kind
    page.keyboard.press("ArrowDown")
    assert page.locator(":focus").evaluate_all(_NAMES.replace("FIELD", "layer")) == [0]
    page.keyboard.press("ArrowRight")
    assert page.locator(":focus").evaluate_all(_NAMES.replace("FIELD", "kind")) != kind
    page.keyboard.press("End")
    last = tab.focused
    page.keyboard.press("ArrowRight")
    assert tab.focused == last
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert tab.focused == first
    # The grid is one stop on the way through the page.
    assert page.locator('.site[tabindex="0"]').count() == 1
    outline = page.locator(":focus").evaluate(
        "b => getComputedStyle(b).outlineStyle + getComputedStyle(b).outlineWidth"
    )
    assert outline == "solid3px"


def test_pointing_at_a_site_shows_it_and_its_partners(tab: Tab, study: Comparison) -> None:
    tab.choose(method="lora-drop")
    state = states(study.arm("lora-drop", 0, task="tiny"))[-1][1]
    name = next(n for n, s in state.items() if s["shared_with"])
    tab.page.hover(f'.site[aria-label^="{name}:"]')
    assert tab.detail("name")[0] == name
    partners = tab.page.locator(".site.partner").evaluate_all(_NAMES.replace("FIELD", "name"))
    assert set(partners) == set(state[name]["shared_with"])


def test_another_arm_keeps_the_step_and_a_failed_one_says_why(tab: Tab) -> None:
    page, slider = tab.page, tab.page.locator('input[name="event"]')
    tab.choose(method="prilora")
    slider.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    before = page.inner_text("#explorer-status")
    tab.choose(seed=1)
    assert page.inner_text("#explorer-status").partition(",")[0] == before.partition(",")[0]
    tab.choose(method=Failing.name)
    assert "This arm is not finished: failed: ValueError: </script>" in page.inner_text("#explorer-status")
    assert page.is_hidden("#explorer-grid")
    tab.choose(method="lora")
    assert page.is_visible("#explorer-grid")


@pytest.mark.parametrize("tab", [{"java_script_enabled": False}], indirect=True)
def test_everything_else_works_without_scripts(tab: Tab) -> None:
    assert tab.page.is_visible("noscript p")
    assert tab.page.is_hidden("#explorer-panel")
    assert tab.page.is_visible("text=Scores, sizes and cost")


# --- looks ------------------------------------------------------------------------------------------------------------

# Contrast of a text's colour with the ground behind it, for every text in `selector`; [ratio, text].
_CONTRASTS = """(selector) => {
  const parts = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor);
      if (found.length < 4 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll(selector)]
    .filter((node) => node.textContent.trim() && node.getClientRects().length)
    .map((node) => {
      const style = getComputedStyle(node);
      const ink = node instanceof SVGElement ? style.fill : style.color;
      const [a, b] = [light(parts(ink)), light(ground(node))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), node.textContent.trim().slice(0, 40)];
    });
}"""
_INK_ON_CELLS = ("rgb(1, 1, 1)", "rgb(254, 254, 254)")


@pytest.mark.parametrize("tab", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_all_text_stands_out_from_its_ground(tab: Tab) -> None:
    page = tab.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    for selector in (
        "p, li, a, dt, dd, pre, code, h1, h2, h3, label, select, summary, figcaption",
        "th, td, caption, small",
    ):
        found = page.evaluate(_CONTRASTS, selector)
        assert len(found) > 20
        assert min(found)[0] >= 4.5, min(found)
    assert min(page.evaluate(_CONTRASTS, ".site"))[0] >= 4.5
    # What lies on a coloured cell has the ink of the cell; all else in a plot lies on the page.
    page.evaluate(
        """inks => document.querySelectorAll("svg text").forEach((t) => {
          t.classList.toggle("on-page", !inks.includes(getComputedStyle(t).fill));
        })""",
        list(_INK_ON_CELLS),
    )
    found = page.evaluate(_CONTRASTS, "svg text.on-page")
    assert len(found) > 50
    assert min(found)[0] >= 4.5, min(found)


def test_dark_is_dark(browser: Any, report: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        tab = Tab(browser, report, color_scheme=scheme)
        grounds.append(tab.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))
        tab.context.close()
    assert min(grounds[0]) > 230
    assert max(grounds[1]) < 40


@pytest.mark.parametrize("tab", [{"viewport": PHONE}, {"viewport": {"width": 820, "height": 1100}}, {}], indirect=True)
def test_the_page_never_scrolls_sideways(tab: Tab) -> None:
    page = tab.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """(width) => [...document.querySelectorAll("main *")]
          .filter((e) => !e.closest(".scroll > *, .unseen") && e.getBoundingClientRect().right > width + 1)
          .map((e) => e.outerHTML.slice(0, 90))""",
        width,
    )
    assert outside == []
    size = page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= 16


@pytest.mark.slow
def test_a_report_of_thirty_methods_is_small_and_begins_with_the_answer(browser: Any, tmp_path: Path) -> None:
    kinds = ("plain", "cut", "sparse", "shared")
    methods = ["plain", *(f"{kinds[i % 4]}-variant-{i}" for i in range(1, 28)), "flat", "x-head"]
    page = write_report(store(tmp_path / "study", methods=methods, seeds=range(3)), tmp_path / "report.html")
    assert page.stat().st_size <= 2_000_000
    for width, height in ((1280, 900), (400, 850)):
        tab = Tab(browser, page, viewport={"width": width, "height": height})
        assert tab.page.inner_text("h1") == "30 methods on rte"
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        answer = tab.page.locator(".headline").first.bounding_box()
        assert answer is not None
        assert answer["y"] + answer["height"] <= height
        assert tab.trouble == []
        tab.context.close()


@pytest.mark.parametrize("tab", [{"viewport": PHONE}, {}], indirect=True)
def test_blocks_do_not_overlap(tab: Tab) -> None:
    overlaps = tab.page.evaluate(
        """() => [...document.querySelectorAll("main, section, article, .answer, .stage, .details, figure, form")]
          .flatMap((parent) => {
            const boxes = [...parent.children].filter((c) => c.getClientRects().length && !c.matches(".unseen"))
              .map((c) => [c, c.getBoundingClientRect()]);
            return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
              .filter(([, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
                && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1)
              .map(([b]) => [a.outerHTML.slice(0, 60), b.outerHTML.slice(0, 60)]));
          })"""
    )
    assert overlaps == []


def test_the_contents_lead_to_their_sections(tab: Tab) -> None:
    page = tab.page
    for link in page.locator("nav a").all():
        target = link.get_attribute("href")
        assert page.locator(f"{target} h2").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_url("**#verdict")


# --- the leaderboard --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaderboard(study: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stored = store(tmp_path_factory.mktemp("stored"), methods=["plain", "flat", "x-head"], tasks=["rte", "mrpc"])
    path = tmp_path_factory.mktemp("leaderboard") / "index.html"
    path.write_text(render({"runs/broad": Frames(study), "runs/stored": Frames(stored)}))
    return path


@pytest.mark.parametrize("width", [400, 1280])
def test_the_leaderboard_filters_and_sorts(browser: Any, leaderboard: Path, width: int) -> None:
    tab = Tab(browser, leaderboard, viewport={"width": width, "height": 900})
    page = tab.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.inner_text("#filter-status") == "16 of 16 rows"
    page.select_option('select[name="study"]', "runs/stored")
    page.select_option('select[name="task"]', "rte")
    rows = page.locator("tbody tr:visible")
    assert [text.split("\n")[0] for text in rows.locator("th").all_inner_texts()] == ["plain", "x-head", "flat"]
    assert rows.nth(1).locator("th small").inner_text() == "cannot meet a budget"
    assert "learned nothing" in rows.nth(2).inner_text()
    for order in ("descending", "ascending"):
        page.click("thead button:text-is('score')")
        assert page.locator(f"th[aria-sort='{order}'] >> text=score").count() == 1
        scores = rows.locator('[data-column="score_mean"]').evaluate_all("c => c.map((x) => Number(x.dataset.value))")
        assert scores == sorted(scores, reverse=order == "descending")
    assert tab.trouble == []
    tab.context.close()
