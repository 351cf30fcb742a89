"""The page at / in a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
sync_api.expect.set_options(timeout=60_000)
# The shell draws no windows, which nobody would see: a third less of the processor's time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Skips if it is not installed."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Any, url: str, tab: str = "", *, clocked: bool = False) -> Iterator[Any]:
    """The page of the server at `url`; nothing may be asked of another host, and nothing may go
    wrong in it. tab: with which it opens; else that depends on whether the server has cameras.
    clocked: its clock can be put forward."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    if clocked:
        page.clock.install()
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.goto(f"{url}/#{tab}" if tab else url)
    page.wait_for_selector('#health[data-state="ready"]')
    yield page
    page.close()
    assert [at for at in asked if not at.startswith((url, f"blob:{url}"))] == []
    # The browser itself notes each refused request; the page shows the sentence.
    assert [text for text in wrong if "the server responded with a status of 4" not in text] == []
