"""The console's tab Set up in a real browser: a camera with a region, outputs, alerts."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from browsers import browser, opened, sync_api
from images import encode, plain
from job_workers import await_that
from line_outputs import tables
from server_process import LiveServer, live_server

__all__ = ["browser"]

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
SIDE = 240


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def write_halves(path: Path) -> None:
    """A video of which the left half is red and the right one green."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (2 * SIDE, SIDE))
    halves = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    halves[:, :SIDE, 2] = halves[:, SIDE:, 1] = 255
    for _ in range(3):
        writer.write(halves)
    writer.release()


@pytest.fixture(scope="module")
def line(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with two outputs that judges the health of pictures."""
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{receiver.server_port}"
    output = tables(
        {"name": "mes", "kind": "webhook", "url": url},
        {"name": "away", "kind": "modbus-client", "host": "127.0.0.1", "port": 9},
    )
    health = {"image_health": "on", "image_health_frames": 10}
    with live_server(models=colors, output=output, **health) as server:
        yield server
    receiver.shutdown()
    receiver.server_close()


@pytest.fixture
def setup(browser: Any, line: LiveServer) -> Iterator[Any]:
    with opened(browser, line.url) as page:
        page.locator('nav a[href="#setup"]').click()
        yield page


def drag(page: Any, stage: Any, start: float, end: float) -> None:
    """Draw a region with the mouse, from share `start` to share `end` of the picture's width."""
    box = stage.bounding_box()
    top, bottom = box["y"] + 2, box["y"] + box["height"] - 2
    page.mouse.move(box["x"] + start * box["width"], top)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], bottom, steps=5)
    page.mouse.up()


def newest(line: LiveServer) -> dict[str, Any]:
    query = {"camera": "belt", "limit": "1"}
    rows = requests.get(line.url + "/v1/journal", query, timeout=60).json()["rows"]
    return rows[0] if rows else {}


def state(line: LiveServer) -> dict[str, Any]:
    cameras = requests.get(line.url + "/v1/cameras", timeout=60).json()["cameras"]
    return next((each for each in cameras if each["name"] == "belt"), {})


def test_camera_is_added_its_region_drawn_then_deleted(
    setup: Any, line: LiveServer, tmp_path: Path
) -> None:
    video = tmp_path / "belt.avi"
    write_halves(video)
    setup.get_by_role("button", name="Add a camera").click()
    form = setup.locator("#camera-form")
    form.get_by_label("Name").fill("belt")
    form.get_by_label("Kind").select_option("video")
    sync_api.expect(form.get_by_label("Address")).to_be_hidden()
    form.get_by_label("File or folder").fill(str(video))
    form.get_by_label("begin again").check()
    form.get_by_role("button", name="Add").click()
    row = setup.locator("#setup-cameras li", has_text="belt")
    picture = row.get_by_role("img", name="newest frame")
    sync_api.expect(picture).to_be_visible()
    drag(setup, row.locator(".region-stage"), 0.6, 0.95)
    row.get_by_role("button", name="Judge this region").click()
    sync_api.expect(row).to_contain_text("This region is judged from now on.")
    left, _, width, _ = state(line)["region"]
    assert 0.58 < left < 0.62
    assert 0.33 < width < 0.37
    await_that(lambda: newest(line).get("label") == "green", "the right half")
    # By the keyboard, the left half.
    for side, share in (("left", "5"), ("width", "40")):
        row.get_by_label(f"{side} %").fill(share)
    row.get_by_role("button", name="Judge this region").press("Enter")
    await_that(lambda: newest(line).get("label") == "red", "the left half")
    assert state(line)["region"][::2] == [0.05, 0.4]
    row.get_by_role("button", name="Delete").click()
    dialog = setup.locator("#sure")
    sync_api.expect(dialog).to_contain_text("reads this camera no more")
    dialog.get_by_role("button", name="Do it").click()
    sync_api.expect(row).to_have_count(0)
    assert state(line) == {}


def test_refused_camera_is_told_in_the_servers_words(setup: Any) -> None:
    setup.get_by_role("button", name="Add a camera").click()
    form = setup.locator("#camera-form")
    form.get_by_label("Name").fill("a/b")
    form.get_by_label("Kind").select_option("folder")
    form.get_by_label("File or folder").fill("/tmp")
    form.get_by_role("button", name="Add").click()
    sync_api.expect(setup.locator("#setup-text")).to_contain_text("Name should be")
    sync_api.expect(form).to_be_visible()


def test_outputs_are_tested_or_say_why_not(setup: Any) -> None:
    row = setup.locator("#setup-outputs li", has_text="mes webhook")
    row.get_by_role("button", name="Send a test message").click()
    sync_api.expect(row).to_contain_text("no verdict")
    sync_api.expect(row).to_contain_text("the test was taken")
    sync_api.expect(setup.locator("#setup-text")).to_be_hidden()
    away = setup.locator("#setup-outputs li", has_text="away modbus")
    sync_api.expect(away).to_contain_text("takes no test")
    sync_api.expect(away.get_by_role("button")).to_have_count(0)


def test_alerts_and_health_of_parts_are_listed(setup: Any) -> None:
    alert = setup.locator("#alerts li", has_text="Output disconnected")
    sync_api.expect(alert).to_contain_text("away")
    part = setup.locator("#parts div", has_text="outputs connected")
    sync_api.expect(part).to_contain_text("1 / 2")
    sync_api.expect(part).to_have_attribute("data-state", "failed")


def test_limits_of_health_are_tried_on_the_live_picture(setup: Any, line: LiveServer) -> None:
    for level in range(3):
        line.recognize(encode(plain((0, 250 - level, 0)), "PNG"), camera="eye")
    card = setup.locator(".health-card", has_text="eye")
    slider = card.get_by_label("least brightness")
    sync_api.expect(slider).to_be_visible()
    slider.fill("255")
    sync_api.expect(card.locator("pre")).to_contain_text("brightness_min = 255")
    sync_api.expect(card.locator("tr", has_text="least brightness")).to_contain_text("unsure")
    card.get_by_role("button", name="Learn anew").click()
    setup.locator("#sure").get_by_role("button", name="Do it").click()
    sync_api.expect(card).to_contain_text("learns: 0 / 10")


def test_open_form_and_picture_have_no_violation(
    setup: Any, line: LiveServer, tmp_path: Path
) -> None:
    video = tmp_path / "belt.avi"
    write_halves(video)
    table: dict[str, Any] = {"name": "seen", "kind": "video", "path": str(video), "loop": True}
    requests.post(line.url + "/v1/cameras", json=table, timeout=60).raise_for_status()
    row = setup.locator("#setup-cameras li", has_text="seen")
    row.get_by_role("button", name="Picture and region").click()
    sync_api.expect(row.get_by_role("img", name="newest frame")).to_be_visible()
    setup.get_by_role("button", name="Add a camera").click()
    found = axe.Axe().run(setup).response["violations"]
    assert [(each["id"], [n["html"] for n in each["nodes"]][:2]) for each in found] == []
    requests.delete(line.url + "/v1/cameras/seen", timeout=60)


def test_frame_from_before_anybody_looked_is_shown(
    browser: Any, line: LiveServer, tmp_path: Path
) -> None:
    write_halves(tmp_path / "belt.avi")
    table: dict[str, Any] = {"name": "early", "kind": "video", "path": str(tmp_path / "belt.avi")}
    requests.post(line.url + "/v1/cameras", json=table | {"interval_s": 0.02}, timeout=60)
    states = line.url + "/v1/cameras"

    def ended() -> bool:
        cameras = requests.get(states, timeout=60).json()["cameras"]
        return any(each["name"] == "early" and each["state"] == "ended" for each in cameras)

    await_that(ended, "the end of the video")
    with opened(browser, line.url, "now") as page:
        tile = page.locator("#tiles .tile", has_text="early")
        sync_api.expect(tile.locator("img[src]")).to_be_visible()
        assert requests.get(line.url + "/v1/now", timeout=60).json()["pictures"] == []
    requests.delete(f"{states}/early", timeout=60)
