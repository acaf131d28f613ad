"""The documentation builds without a warning, its pages open without an error, and its search finds methods."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from peftprune.methods.registry import names
from tests.test_report_browser import ARGUMENTS, CHROMIUM, REASON

ROOT = Path(__file__).parent.parent
MISSING = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed; the extra docs has it"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_there_is_a_page_for_every_method(site: Path) -> None:
    for name in names():
        page = (site / "methods" / f"{name}.html").read_text()
        assert all(f'id="{part}"' in page for part in ("options", "fidelity", "cost-at-its-peak")), name


def test_nothing_comes_from_another_machine(site: Path) -> None:
    loaded = re.compile(r"""<(?:script|img|iframe)[^>]*\bsrc="?https?:|<link[^>]*stylesheet[^>]*\bhref="?https?:""")
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text()), page


@pytest.mark.browser
@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_pages_open_without_an_error_and_the_search_finds_a_method(address: str) -> None:
    from playwright.sync_api import sync_playwright

    trouble: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        for name in ("first-study", "methods/index", "methods/lorpa", "api", "index"):
            answer = page.goto(f"{address}/{name}.html")
            assert answer is not None
            assert answer.ok
            assert page.locator("article h1").count() == 1
        page.fill("input.md-search__input", "LoRPA")
        page.wait_for_selector("a.md-search-result__link[href*='methods/lorpa.html']", timeout=60_000)
        browser.close()
    assert not trouble
    assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
