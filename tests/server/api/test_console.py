"""The page at / in a real browser, as a person uses it."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from clients import frame
from live import LiveServer

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
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
DROP = """([name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const drop = document.getElementById("drop");
  drop.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
PASTE = """([name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type}));
  document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, clients: LiveServer) -> Iterator[Any]:
    """The page, ready; nothing may be asked of another host, and nothing may go wrong in it."""
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    asked: list[str] = []
    wrong: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    opened.goto(clients.url)
    opened.wait_for_selector('#health[data-state="ready"]')
    opened.wait_for_selector("#samples button")
    yield opened
    opened.close()
    own = (clients.url, f"blob:{clients.url}")
    assert [url for url in asked if not url.startswith(own)] == []
    # The browser itself notes each refused request; the page shows the sentence.
    assert [text for text in wrong if "the server responded with a status of 4" not in text] == []


def labels(page: Any) -> list[str]:
    page.wait_for_selector("#labels li")
    return [str(text) for text in page.locator("#labels .name").all_text_contents()]


def test_a_sample_frame_clicked_shows_its_label(page: Any) -> None:
    page.get_by_role("button", name="cyan").click()
    found = labels(page)
    assert found[0] == "cyan"
    assert len(found) == 5
    assert page.locator("#labels .bar").count() == 5
    assert page.locator("#picture").is_visible()
    assert "inference" in page.locator("#timing").inner_text()
    page.get_by_role("button", name="red").click()
    sync_api.expect(page.locator("#labels .name").first).to_have_text("red")
    assert "40 \N{MULTIPLICATION SIGN} 30" in page.locator("#about").inner_text()


def test_a_shipped_sample_clicked_shows_what_it_is(browser: Any, server: LiveServer) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_role("button", name="scratched").click()
    assert labels(page)[0] == "scratched"
    assert page.locator("#verdict").inner_text().lower() == "fail"
    assert page.locator("#by").inner_text() == "parts, version 1"
    page.close()


def test_an_image_chosen_dropped_and_pasted(page: Any) -> None:
    for color, how in (("white", "choose"), ("blue", DROP), ("yellow", PASTE)):
        name, data = f"{color}.png", frame(color)
        if how == "choose":
            file = {"name": name, "mimeType": "image/png", "buffer": data}
            page.set_input_files("#file", files=[file])
        else:
            page.evaluate(how, [name, "image/png", list(data)])
        sync_api.expect(page.locator("#labels .name").first).to_have_text(color)
        assert name in page.locator("#about").inner_text()


def test_a_text_file_dropped_is_answered_with_a_clear_sentence(page: Any) -> None:
    page.evaluate(DROP, ["notes.txt", "text/plain", list(b"no image at all")])
    page.wait_for_selector("#error:not([hidden])")
    sentence = page.locator("#error").inner_text()
    assert sentence == "Not an image this server reads (JPEG, PNG, BMP, WEBP, TIFF, PPM)."
    assert "notes.txt" in page.locator("#about").inner_text()
    assert page.locator("#labels").is_hidden()
    page.get_by_role("button", name="red").click()
    assert labels(page)[0] == "red"
    assert page.locator("#error").is_hidden()


def test_the_models_that_take_images_can_be_chosen(page: Any) -> None:
    assert page.locator("#model option").all_text_contents() == ["corners"]


def test_names_from_outside_are_text(page: Any) -> None:
    page.evaluate(DROP, ["<img src=x onerror=alert(1)>.txt", "text/plain", [1, 2, 3]])
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#about").inner_text().startswith("<img src=x")
    assert page.locator("#about img").count() == 0


def test_the_keyboard_reaches_everything(page: Any) -> None:
    reached = set()
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"A", "model", "file", "BUTTON"} <= reached


def test_docs_are_readable(browser: Any, clients: LiveServer) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(clients.url + "/docs")
    page.wait_for_selector("details")
    headings = page.locator("h2").all_text_contents()
    assert headings == [
        "Lineside",
        "Jobs",
        "Tutorials",
        "Open Inference Protocol v2",
        "TensorFlow Serving",
    ]
    page.locator("summary", has_text="/v1/recognize").first.click()
    assert page.get_by_text("image_base64").first.is_visible()
    assert all(url.startswith(clients.url) for url in asked)
    page.close()


def test_what_the_pages_are_made_of(clients: LiveServer) -> None:
    page = requests.get(clients.url, timeout=60)
    assert page.headers["Content-Type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    again = requests.get(clients.url, headers={"If-None-Match": page.headers["ETag"]}, timeout=60)
    assert again.status_code == 304
    for path in ("/console/../app.py", "/console/%2e%2e%2fapp.py", "/console/.."):
        session = requests.Session()
        request = session.prepare_request(requests.Request("GET", clients.url))
        request.url = clients.url + path
        assert session.send(request, timeout=60).status_code == 404
        session.close()


def test_samples(clients: LiveServer) -> None:
    base = f"{clients.url}/v1/models/corners/samples"
    found = requests.get(base, timeout=60).json()
    assert found == {"model": "corners", "samples": ["cyan.jpg", "red.jpg"]}
    image = requests.get(f"{base}/red.jpg", timeout=60)
    assert (image.headers["Content-Type"], image.content) == ("image/jpeg", frame("red", "JPEG"))
    assert image.headers["Cache-Control"] == "private, max-age=3600"
    assert requests.get(f"{base}/%2e%2e%2fbundle.json", timeout=60).status_code == 404
    assert requests.get(f"{base}/bundle.json", timeout=60).status_code == 404
