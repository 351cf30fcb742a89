"""The console's tabs in a real browser: the line as it is now, labels, models, settings."""

import gzip
import os
import signal
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from browsers import browser, opened, sync_api
from images import encode, plain
from job_workers import await_that
from server_process import LiveServer, live_server
from tiny_models import MakeModel, write_bundle

from server.store.keys import RIGHTS, add_key

__all__ = ["browser"]

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
TABS = ("now", "try", "look", "journal", "models", "setup")
SAMPLES = 10
# After which the page speaks of a picture or a server that it still waits for.
AWHILE_MS = 6000
POLICY = {"accept": ["green"], "min_probability": 0.5}


def frame(level: int) -> bytes:
    """A green frame, each level another one."""
    return encode(plain((0, 255 - level, 0)), "PNG")


@pytest.fixture(scope="module")
def line(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of two versions of a model that keeps every frame."""
    models = tmp_path_factory.mktemp("models")
    for version in ("1", "2"):
        write_bundle(models / "colors" / version, tiny_model("fast"), verdict=POLICY)
    kept = {"samples": "on", "samples_share": 1, "samples_per_minute": 1000}
    with live_server(models=models, model="colors", **kept) as server:
        yield server


@pytest.fixture
def page(browser: Any, line: LiveServer) -> Iterator[Any]:
    with opened(browser, line.url, clocked=True) as page:
        yield page


def go(page: Any, tab: str) -> Any:
    """Open a tab by its link; return its part of the page."""
    page.locator(f'nav a[href="#{tab}"]').click()
    shown = page.locator(f"#tab-{tab}")
    sync_api.expect(shown).to_be_visible()
    return shown


def test_frame_of_a_camera_appears_with_verdict_and_picture(page: Any, line: LiveServer) -> None:
    go(page, "now")
    page.wait_for_selector("#figures dd")
    line.recognize(frame(0), camera="gate", part="A-17")
    tile = page.locator("#tiles .tile", has_text="gate")
    sync_api.expect(tile.locator(".verdict")).to_have_text("pass")
    sync_api.expect(tile).to_contain_text("A-17")
    sync_api.expect(tile.locator("img[src]")).to_be_visible()
    line.recognize(encode(plain((255, 0, 0)), "PNG"), camera="gate", part="A-18")
    sync_api.expect(tile.locator(".verdict")).to_have_text("fail")
    sync_api.expect(page.locator("#strip li").last).to_have_attribute("data-verdict", "fail")
    line.recognize(b"no image", camera="gate")
    sync_api.expect(tile.locator(".verdict")).to_have_text("refused")
    sync_api.expect(tile).to_have_class("tile before")


def test_card_tells_of_the_frame_on_its_picture(page: Any, line: LiveServer) -> None:
    """Until the picture of a newer frame has not come for some seconds."""
    go(page, "now")
    page.wait_for_selector("#figures dd")
    line.recognize(frame(2), camera="slow", part="S-1")
    tile = page.locator("#tiles .tile", has_text="slow")
    sync_api.expect(tile.locator("img[src]")).to_be_visible()
    held: list[Any] = []
    page.route("**/v1/now/picture?camera=slow", lambda route: held.append(route))
    with page.expect_request("**/v1/now/picture?camera=slow"):
        line.recognize(encode(plain((255, 0, 0)), "PNG"), camera="slow", part="S-2")
    assert page.locator("#strip li").last.get_attribute("data-verdict") == "fail"
    assert tile.locator(".verdict").text_content() == "pass"
    assert "S-1" in tile.inner_text()
    page.clock.fast_forward(AWHILE_MS)
    sync_api.expect(tile.locator(".verdict")).to_have_text("fail")
    sync_api.expect(tile).to_have_class("tile before")
    sync_api.expect(tile).to_contain_text("S-2")
    [route] = held
    route.continue_()
    page.unroute("**/v1/now/picture?camera=slow")
    sync_api.expect(tile).to_have_class("tile")
    sync_api.expect(tile.locator(".verdict")).to_have_text("fail")


def test_lost_server_is_told_and_its_return(page: Any, line: LiveServer) -> None:
    go(page, "now")
    page.wait_for_selector("#figures dd")
    worker = line.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    try:
        page.clock.fast_forward(AWHILE_MS)
        sync_api.expect(page.locator("#no-data")).to_be_visible()
        sync_api.expect(page.locator("#no-data")).to_contain_text("No data from the server since")
    finally:
        os.kill(worker, signal.SIGCONT)
    sync_api.expect(page.locator("#no-data")).to_be_hidden()


def test_without_a_stream_the_page_asks_now_and_then(browser: Any, line: LiveServer) -> None:
    page = browser.new_page()
    page.route("**/v1/events", lambda route: route.fulfill(status=503, body="{}"))
    page.goto(line.url)
    go(page, "now")
    line.recognize(frame(1), camera="polled")
    sync_api.expect(page.locator("#tiles .tile", has_text="polled")).to_be_visible()
    page.close()


def samples(line: LiveServer, **query: str) -> int:
    """How many samples of the camera `look` there are."""
    query = {"limit": "200", "camera": "look"} | query
    answer = requests.get(line.url + "/v1/samples", query, timeout=60)
    return len(answer.json()["samples"])


def labelled(line: LiveServer) -> int:
    return samples(line, labelled="true")


def test_samples_are_labelled_by_keys_and_undone(page: Any, line: LiveServer) -> None:
    for level in range(SAMPLES):
        line.recognize(frame(level + 50), camera="look")
        await_that(lambda level=level: samples(line) == level + 1, "the sample")  # type: ignore[misc]
    shown = go(page, "look")
    shown.locator("input[name=camera]").fill("look")
    shown.get_by_role("button", name="Refresh").click()
    cards = shown.locator(".card")
    sync_api.expect(cards).to_have_count(SAMPLES)
    cards.first.focus()
    for number in range(SAMPLES):
        page.keyboard.press("2" if number % 2 else "1")
        sync_api.expect(shown.locator(".card.labelled")).to_have_count(number + 1)
    assert labelled(line) == SAMPLES
    count = page.locator("#look-count")
    sync_api.expect(count).to_contain_text(f" {SAMPLES} labelled")
    page.keyboard.press("u")
    sync_api.expect(shown.locator(".card.labelled")).to_have_count(SAMPLES - 1)
    sync_api.expect(count).to_contain_text(f" {SAMPLES - 1} labelled")
    assert labelled(line) == SAMPLES - 1
    for card in (cards.nth(0), cards.nth(1), cards.nth(2)):
        card.press("Space")
    sync_api.expect(page.locator("#selected")).to_have_text("3 selected")
    shown.get_by_role("button", name="blue").click()
    sync_api.expect(shown.locator(".card", has_text="✓ blue")).to_have_count(3)
    shown.get_by_role("button", name="Undo").click()
    sync_api.expect(shown.locator(".card", has_text="✓ blue")).to_have_count(0)
    shown.get_by_role("button", name="Select all").click()
    sync_api.expect(page.locator("#selected")).to_have_text(f"{SAMPLES} selected")
    shown.locator("#label-keys").get_by_role("button", name="red").click()
    sync_api.expect(shown.locator(".card", has_text="✓ red")).to_have_count(SAMPLES)
    classes = page.locator("#look-classes div", has_text="red")
    sync_api.expect(classes).to_contain_text(str(SAMPLES))
    sync_api.expect(page.locator("#train-text")).to_contain_text("two frames of two classes")
    with page.expect_download() as download:
        shown.get_by_role("link", name="Save as a training folder").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert [name.split("/")[0] for name in archive.namelist()] == ["red"] * SAMPLES


def test_version_is_activated_and_rolled_back(page: Any, line: LiveServer) -> None:
    shown = go(page, "models")
    one = shown.locator(".versions li", has_text="version 1")
    one.get_by_role("button", name="Activate").click()
    dialog = page.locator("#sure")
    sync_api.expect(dialog).to_contain_text("answers in place of version 2")
    sync_api.expect(dialog).to_contain_text("frames get another label or verdict")
    dialog.get_by_role("button", name="Cancel").click()
    sync_api.expect(one.get_by_role("button", name="Activate")).to_be_visible()
    one.get_by_role("button", name="Activate").click()
    dialog.get_by_role("button", name="Do it").click()
    sync_api.expect(one.locator(".verdict")).to_be_visible()
    shown.get_by_role("button", name="Roll back").click()
    dialog.get_by_role("button", name="Do it").click()
    two = shown.locator(".versions li", has_text="version 2")
    sync_api.expect(two.locator(".verdict")).to_be_visible()
    sync_api.expect(page.locator("#models-text")).to_have_text(
        "colors: now answers with version 2."
    )
    sync_api.expect(shown).to_contain_text("accept: green")


def test_versions_stand_side_by_side(page: Any, line: LiveServer) -> None:
    line.recognize(frame(6), camera="pair")
    await_that(lambda: samples(line, camera="pair"), "the sample")
    shown = go(page, "models")
    one = shown.locator(".versions li", has_text="version 1")
    one.get_by_role("button", name="Compare").click()
    compared = page.locator("#compared")
    sync_api.expect(compared).to_be_visible()
    sync_api.expect(compared.locator("tbody tr").first).to_contain_text("green")
    sync_api.expect(page.locator("#compared-text")).to_contain_text("0 /")
    picture = compared.locator("img").first
    picture.scroll_into_view_if_needed()
    assert await_that(lambda: picture.evaluate("image => image.naturalWidth"), "the picture")
    sync_api.expect(shown).to_contain_text("Golden frames: 0")


def test_place_where_a_classifier_looked_is_drawn(page: Any) -> None:
    go(page, "try")
    sync_api.expect(page.locator("#python")).to_contain_text("requests.post")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": frame(9)})
    page.get_by_role("button", name="Where did it look?").click()
    sync_api.expect(page.get_by_role("img", name="as the model sees it")).to_be_visible()
    sync_api.expect(page.locator("#why-text")).not_to_be_empty()
    drawn = page.get_by_label("Draw where it looked")
    sync_api.expect(drawn).to_be_checked()
    sync_api.expect(page.locator("#overlay")).to_be_visible()
    found = axe.Axe().run(page).response["violations"]
    assert [each["id"] for each in found] == []
    page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": frame(8)})
    sync_api.expect(drawn).to_be_hidden()


def test_journal_is_filtered_and_charted(page: Any, line: LiveServer) -> None:
    line.recognize(frame(3), camera="book", part="B-1")
    line.recognize(frame(4), camera="book", part="B-2")
    shown = go(page, "journal")
    shown.locator("input[name=camera]").fill("book")
    shown.get_by_role("button", name="Show").click()
    sync_api.expect(shown.locator("tbody tr")).to_have_count(2)
    sync_api.expect(shown.locator("#chart li")).to_have_count(1)
    with page.expect_download() as download:
        shown.get_by_role("button", name="Save as CSV").click()
    assert "B-2" in Path(download.value.path()).read_text()
    shown.get_by_role("button", name="Frame:").first.click()
    picture = shown.locator("tr.frame img")
    sync_api.expect(picture).to_be_visible()
    shown.locator("input[name=part]").fill("absent")
    shown.get_by_role("button", name="Show").click()
    sync_api.expect(page.locator("#journal-text")).to_contain_text("Nothing in the journal")


@pytest.fixture
def keyless(colors: Path, tmp_path: Path) -> Iterator[LiveServer]:
    """A server without keys, whose keys file can be made."""
    with live_server(models=colors, keys_file=tmp_path / "keys.jsonl") as server:
        yield server


def test_first_key_is_made_then_asked_for_and_revoked(browser: Any, keyless: LiveServer) -> None:
    """The first key closes the server and signs its owner in, who makes and revokes one."""
    page = browser.new_page()
    page.goto(keyless.url)
    page.wait_for_selector('#health[data-state="ready"]')
    shown = go(page, "setup")
    sync_api.expect(shown.locator("#keys-none")).to_be_visible()
    form = shown.locator("#key-new")
    form.locator("input[name=name]").fill("office")
    for right in ("admin", "metrics"):
        sync_api.expect(form.get_by_label(right)).to_be_checked()
    form.get_by_label("admin").uncheck()
    form.get_by_role("button", name="Make a key").click()
    page.get_by_role("button", name="Do it").click()
    sync_api.expect(shown.locator("#keys-text")).to_contain_text("needs the right admin")
    form.get_by_label("admin").check()
    form.get_by_role("button", name="Make a key").click()
    sync_api.expect(page.locator("#sure-text")).to_contain_text("cameras too")
    page.get_by_role("button", name="Do it").click()
    field = shown.get_by_label("New key")
    sync_api.expect(field).to_be_visible()
    key = field.input_value()
    assert key.startswith("ls_")
    sync_api.expect(page.locator("#who")).to_have_text("office")
    row = shown.locator("#keys tr", has_text="office (you)")
    sync_api.expect(row).to_contain_text("recognize, admin, metrics")
    sync_api.expect(shown.locator("#keys-none")).to_be_hidden()
    sync_api.expect(field).to_be_focused()
    sync_api.expect(field).to_be_in_viewport()
    assert page.locator("#key-form").is_hidden()
    violations = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
    shown.get_by_role("button", name="Done").click()
    sync_api.expect(field).to_have_value("")
    assert key not in page.content()

    for tab in TABS:
        go(page, tab)
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_load_state("networkidle") if tab != "now" else None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        page.set_viewport_size({"width": 1200, "height": 800})
    back = page.locator("#model-cards").get_by_role("button", name="Roll back", include_hidden=True)
    sync_api.expect(back.first).to_be_disabled()
    sync_api.expect(back.first).to_have_attribute(
        "title", "There is no other version to go back to."
    )

    sync_api.expect(form.get_by_label("admin")).not_to_be_checked()
    form.locator("input[name=name]").fill("line-4")
    form.get_by_role("button", name="Make a key").click()
    sync_api.expect(shown.locator("#keys tr")).to_have_count(2)
    shown.get_by_role("button", name="Revoke line-4").click()
    page.get_by_role("button", name="Do it").click()
    sync_api.expect(shown.locator("#keys tr")).to_have_count(1)
    shown.get_by_role("button", name="Revoke office").click()
    page.get_by_role("button", name="Do it").click()
    sync_api.expect(shown.locator("#keys-text")).to_contain_text("last key with the right admin")
    page.close()


def test_signed_in_a_line_with_cameras_opens_with_now(
    browser: Any, keyless: LiveServer, tmp_path: Path
) -> None:
    """And before, Set up claims nothing."""
    camera = {"name": "gate", "kind": "folder", "path": str(tmp_path)}
    requests.post(keyless.url + "/v1/cameras", json=camera, timeout=60).raise_for_status()
    key = add_key(tmp_path / "keys.jsonl", "office", RIGHTS, now=datetime.now(UTC))
    for address, tab in (("/", "now"), ("/#setup", "setup")):
        context = browser.new_context()
        page = context.new_page()
        page.goto(keyless.url + address)
        page.wait_for_selector("#key-form:not([hidden])")
        violations = axe.Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
        sync_api.expect(page.locator("#tab-setup section:visible")).to_have_count(0)
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Sign in").click()
        sync_api.expect(page.locator(f"#tab-{tab}")).to_be_visible()
        sync_api.expect(page.locator(".tab:visible")).to_have_count(1)
        context.close()


def test_settings_are_found_by_a_word(page: Any) -> None:
    shown = go(page, "setup")
    unset = shown.locator("#settings tr", has_text="image_health_limits")
    sync_api.expect(unset).to_contain_text("default")
    sync_api.expect(unset).not_to_have_class("set")
    sync_api.expect(shown.locator("#settings td", has_text="`")).to_have_count(0)
    sync_api.expect(shown.locator("#settings code", has_text="pass").first).to_be_visible()
    row = shown.locator("#settings tr", has_text="samples_per_minute")
    sync_api.expect(row).to_contain_text("1000")
    sync_api.expect(row).to_contain_text("environment")
    shown.get_by_label("Find a setting").fill("max_waiting")
    sync_api.expect(row).to_be_hidden()
    sync_api.expect(shown.locator("#settings tr", has_text="max_waiting").first).to_be_visible()


def test_language_is_the_browsers_or_chosen(browser: Any, line: LiveServer) -> None:
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto(line.url)
    sync_api.expect(page.locator('nav a[href="#journal"]')).to_have_text("日志")
    assert page.locator("html").get_attribute("lang") == "zh"
    page.select_option("#language", "en")
    sync_api.expect(page.locator('nav a[href="#journal"]')).to_have_text("Journal")
    context.close()


def test_wall_shows_the_line_alone(browser: Any, line: LiveServer) -> None:
    page = browser.new_page()
    page.goto(f"{line.url}/?wall")
    sync_api.expect(page.locator("#tab-now")).to_be_visible()
    sync_api.expect(page.locator("nav")).to_be_hidden()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_has_an_accessibility_violation(browser: Any, line: LiveServer, scheme: str) -> None:
    """axe-core's rules, contrast among them."""
    line.recognize(frame(5), camera="gate")
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.goto(line.url)
    page.wait_for_selector('#health[data-state="ready"]')
    for tab in TABS:
        go(page, tab)
        page.wait_for_load_state("networkidle") if tab != "now" else None
        found = axe.Axe().run(page).response["violations"]
        assert [(each["id"], [n["html"] for n in each["nodes"]][:2]) for each in found] == [], tab
    context.close()


def test_page_is_small(browser: Any, line: LiveServer) -> None:
    """At most 60 kB of script for the first paint, 200 kB in all, compressed."""
    folder = Path(__file__).parents[3] / "server" / "console"
    scripts: list[Any] = []
    page = browser.new_page()
    page.on("response", lambda each: scripts.append(each) if ".js" in each.url else None)
    page.goto(f"{line.url}/#try")
    page.wait_for_selector('#health[data-state="ready"]')
    assert len(scripts) >= 5
    assert sum(len(script.body()) for script in scripts) < 60_000
    page.close()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < 200_000
