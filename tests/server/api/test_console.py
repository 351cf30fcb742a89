"""The page at / in a real browser, as a person uses it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from browsers import browser, opened, sync_api
from clients import frame
from server_process import LiveServer, live_server

from server.store.keys import Right, add_key, revoke_key

__all__ = ["browser"]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WRONG = "ls_the-key-of-another-server"
DROP = """([name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type}));
  const drop = document.getElementById("drop");
  drop.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
# Pixels of the overlay that are redder than blue, and those that show the picture as it is.
OVERLAY_COLORS = """() => {
  const canvas = document.getElementById("overlay");
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let [hot, clear] = [0, 0];
  for (let i = 0; i < data.length; i += 4) {
    if (!data[i + 3]) clear += 1;
    else if (data[i] > data[i + 2] + 60) hot += 1;
  }
  return {hot, clear};
}"""
PASTE = """([name, type, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, {type}));
  document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
}"""


@pytest.fixture
def page(browser: Any, clients: LiveServer) -> Iterator[Any]:
    """The page of a server without keys, ready."""
    with opened(browser, clients.url, "try") as page:
        page.wait_for_selector("#samples button")
        yield page


class Closed:
    """A live server that asks for keys."""

    def __init__(self, server: LiveServer, file: Path) -> None:
        self.url, self._file = server.url, file

    def add(self, name: str, *rights: Right) -> str:
        return add_key(self._file, name, rights, now=NOW)

    def revoke(self, name: str) -> None:
        revoke_key(self._file, name)


@pytest.fixture(scope="module")
def closed(client_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    file = tmp_path_factory.mktemp("closed") / "keys.jsonl"
    add_key(file, "first", ["metrics"], now=NOW)
    with live_server(models=client_models, model="corners", keys_file=file) as server:
        yield Closed(server, file)


@pytest.fixture
def closed_page(browser: Any, closed: Closed) -> Iterator[Any]:
    """The page of a server with keys, asking for one."""
    with opened(browser, closed.url) as page:
        page.wait_for_selector("#key-form:not([hidden])")
        yield page


def labels(page: Any) -> list[str]:
    page.wait_for_selector("#labels li")
    return [str(text) for text in page.locator("#labels .name").all_text_contents()]


def test_a_sample_frame_clicked_shows_its_label(page: Any) -> None:
    page.get_by_role("button", name="cyan").click()
    found = labels(page)
    assert found[0] == "cyan"
    assert len(found) == 5
    assert page.locator("#labels .bar").count() == 5
    sync_api.expect(page.locator("#picture")).to_be_visible()
    assert "inference" in page.locator("#timing").inner_text()
    page.get_by_role("button", name="red").click()
    sync_api.expect(page.locator("#labels .name").first).to_have_text("red")
    sync_api.expect(page.locator("#about")).to_contain_text("40 \N{MULTIPLICATION SIGN} 30")


def test_a_shipped_sample_clicked_shows_what_it_is(browser: Any, server: LiveServer) -> None:
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_role("button", name="scratched").click()
    assert labels(page)[0] == "scratched"
    assert page.locator("#verdict").inner_text().lower() == "fail"
    assert page.locator("#by").inner_text() == "parts, version 1"
    page.close()


def test_heat_map_is_drawn_over_the_picture(browser: Any, server: LiveServer) -> None:
    """The canvas lies on the picture, hot on the defect and clear far from it; the answer says why
    the frame failed."""
    with opened(browser, server.url) as page:
        page.wait_for_selector("#samples button")
        page.select_option("#model", "surface")
        page.get_by_role("button", name="scratch-1").click()
        assert labels(page)[0] == "anomaly"
        overlay = page.locator("#overlay")
        sync_api.expect(overlay).to_be_visible()
        box, place = page.locator("#picture").bounding_box(), overlay.bounding_box()
        assert place == {side: pytest.approx(value, abs=1) for side, value in box.items()}
        facts = page.locator("#facts").inner_text()
        assert "anomaly score" in facts
        assert "decided by" in facts
        colors = page.evaluate(OVERLAY_COLORS)
        assert colors["hot"] > 1000
        assert colors["clear"] > 10_000
        assert "base64)" in page.locator("#raw pre").text_content()
        page.get_by_role("button", name="good-1").click()
        sync_api.expect(page.locator("#verdict")).to_have_text("pass")
        sync_api.expect(overlay).to_be_visible()
        assert page.evaluate(OVERLAY_COLORS)["hot"] == 0
        page.select_option("#model", "parts")
        page.get_by_role("button", name="chipped").click()
        sync_api.expect(page.locator("#facts")).to_contain_text("familiar")
        assert page.evaluate(OVERLAY_COLORS)["hot"] == 0


def test_picture_that_no_browser_shows_has_no_overlay(page: Any) -> None:
    page.evaluate(DROP, ["red.tiff", "image/tiff", [1, 2, 3]])
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#overlay").is_hidden()


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


def test_dropped_text_file_gets_a_clear_sentence(page: Any) -> None:
    """A text file dropped is answered with a clear sentence."""
    page.evaluate(DROP, ["notes.txt", "text/plain", list(b"no image at all")])
    page.wait_for_selector("#error:not([hidden])")
    sentence = page.locator("#error").inner_text()
    assert sentence == "Not an image this server reads (JPEG, PNG, BMP, WEBP)."
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
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"A", "model", "file", "BUTTON"} <= reached


def use(page: Any, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Sign in").click()


def expect_reason(page: Any, sentence: str) -> None:
    sync_api.expect(page.locator("#key-why")).to_have_text(sentence)


def test_no_key_is_asked_for_where_none_is_needed(page: Any) -> None:
    page.get_by_role("button", name="cyan").click()
    assert labels(page)[0] == "cyan"
    for id_ in ("#key-form", "#sign-out", "#curl-key"):
        assert page.locator(id_).is_hidden()


def test_a_server_with_keys_asks_for_one(closed_page: Any) -> None:
    form = closed_page.get_by_role("form", name="This server asks for a key")
    assert form.is_visible()
    field = closed_page.get_by_label("Key", exact=True)
    sync_api.expect(field).to_be_focused()
    assert field.get_attribute("type") == "password"
    assert field.get_attribute("autocomplete") == "off"
    assert closed_page.locator("#key-why").is_hidden()
    assert closed_page.locator("#sign-out").is_hidden()
    assert "X-API-Key" in closed_page.locator("footer").inner_text()


def test_a_wrong_key_is_refused_with_the_servers_sentence(closed_page: Any) -> None:
    use(closed_page, WRONG)
    expect_reason(closed_page, "The key is not valid.")
    sync_api.expect(closed_page.get_by_label("Key", exact=True)).to_have_value("")
    assert closed_page.locator("#sign-out").is_hidden()


def test_right_key_repeats_refused_frame_then_is_gone(closed: Closed, closed_page: Any) -> None:
    """The right key recognizes the frame that was refused; signed out, nothing is shown."""
    closed_page.evaluate(DROP, ["blue.png", "image/png", list(frame("blue"))])
    sync_api.expect(closed_page.locator("#about")).to_contain_text("blue.png")
    use(closed_page, WRONG)
    expect_reason(closed_page, "The key is not valid.")
    use(closed_page, closed.add("shift", "recognize"))
    assert labels(closed_page)[0] == "blue"
    sync_api.expect(closed_page.locator("#key-form")).to_be_hidden()
    # Not wait_for_function: it evaluates its text in the page, which the policy forbids.
    sample = closed_page.locator("#samples img").first
    sync_api.expect(sample).to_have_js_property("naturalWidth", 40)
    closed_page.get_by_role("button", name="red").click()
    sync_api.expect(closed_page.locator("#labels .name").first).to_have_text("red")
    closed_page.get_by_role("button", name="Sign out").click()
    sync_api.expect(closed_page.get_by_label("Key", exact=True)).to_be_focused()
    assert closed_page.context.cookies() == []
    for id_ in ("#sign-out", "#samples", "#labels", "#picture"):
        assert closed_page.locator(id_).is_hidden()


def test_key_is_sent_once_and_kept_nowhere(closed: Closed, closed_page: Any) -> None:
    """A cookie that no script can read takes its place, also after the page is loaded again."""
    sent: list[Any] = []
    closed_page.on("request", lambda request: sent.append(request))
    key = closed.add("tab", "recognize")
    use(closed_page, f" {key} ")
    closed_page.get_by_role("button", name="cyan").click()
    assert labels(closed_page)[0] == "cyan"
    closed_page.reload()
    closed_page.get_by_role("button", name="red").click()
    assert labels(closed_page)[0] == "red"
    assert closed_page.locator("#key-form").is_hidden()
    sync_api.expect(closed_page.locator("#who")).to_have_text("tab")
    assert closed_page.evaluate("sessionStorage.length + localStorage.length") == 0
    assert closed_page.evaluate("document.cookie") == ""
    assert key not in closed_page.content()
    assert not [url for url in (closed_page.url, *(r.url for r in sent)) if key in url]
    assert [r.url for r in sent if key in str(r.post_data or r.headers)] == [
        f"{closed.url}/v1/session"
    ]
    [cookie] = closed_page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["expires"]) == (True, "Strict", -1)
    assert key not in cookie["value"]
    with opened(closed_page.context.browser, closed.url) as other:
        other.wait_for_selector("#key-form:not([hidden])")


def test_a_key_without_the_right_is_replaced_by_one_with_it(
    closed: Closed, closed_page: Any
) -> None:
    use(closed_page, closed.add("prometheus", "metrics"))
    closed_page.get_by_role("button", name="cyan").click()
    expect_reason(closed_page, "prometheus has no right to this; it needs recognize.")
    assert closed_page.locator("#sign-out").is_visible()
    use(closed_page, closed.add("line", "recognize"))
    assert labels(closed_page)[0] == "cyan"


def test_revoked_key_is_asked_again_newest_frame_sent(closed: Closed, closed_page: Any) -> None:
    """A revoked key is asked for again, and only the newest frame is repeated."""
    use(closed_page, closed.add("short", "recognize"))
    closed_page.get_by_role("button", name="cyan").click()
    assert labels(closed_page)[0] == "cyan"
    closed.revoke("short")
    closed_page.evaluate(DROP, ["blue.png", "image/png", list(frame("blue"))])
    expect_reason(closed_page, "The key of this session was revoked.")
    assert closed_page.locator("#labels").is_hidden()
    with closed_page.expect_response("**/v1/recognize*"):
        closed_page.evaluate(DROP, ["white.png", "image/png", list(frame("white"))])
    sent: list[str] = []
    closed_page.on("request", lambda request: sent.append(request.url))
    use(closed_page, closed.add("long", "recognize"))
    assert labels(closed_page)[0] == "white"
    assert len([url for url in sent if "/v1/recognize" in url]) == 1
    sync_api.expect(closed_page.locator("#key-form")).to_be_hidden()


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
    assert not page.locator("p.what", has_text="`").count()
    assert all(url.startswith(clients.url) for url in asked)
    page.close()


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_docs_fit_every_screen(browser: Any, clients: LiveServer, width: int) -> None:
    """With every row opened; and each row shows that it opens."""
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(clients.url + "/docs")
    page.wait_for_selector("details")
    closed = page.evaluate(MARKERS)
    assert set(closed) == {'"▸"'}
    page.evaluate("document.querySelectorAll('details').forEach((row) => { row.open = true; })")
    assert set(page.evaluate(MARKERS)) == {'"▾"'}
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    too_wide = "(width) => [...document.querySelectorAll('main *')].map((e) => [e.tagName,"
    too_wide += " e.getBoundingClientRect().right]).filter(([, right]) => right > width)"
    assert page.evaluate(too_wide, width) == []
    text = page.locator("main").inner_text()
    for wrong in ("undefined", "[object O", "NaN", "null |"):
        assert wrong not in text
    assert "X-API-Key" in text
    page.close()


MARKERS = """[...document.querySelectorAll("summary")].map(
    (row) => getComputedStyle(row, "::before").content)"""


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
