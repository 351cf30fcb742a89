"""Cameras that the server reads: all kinds in one server, lost and back, triggered."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import await_that, children
from line_outputs import tables
from pulled_cameras import PASSWORD, USER, HttpCamera, http_camera, write_video
from server_process import LiveServer, live_server

from server.config.load import load
from server.errors import SettingsError

RED, GREEN = encode(plain((255, 0, 0)), "JPEG"), encode(plain((0, 255, 0)), "JPEG")


class Line:
    """A server with a camera of each kind, and what they read."""

    def __init__(self, server: LiveServer, folder: Path, camera: HttpCamera | None = None) -> None:
        self.server = server
        self.folder = folder
        self.camera = camera

    def state(self, name: str) -> dict[str, Any]:
        states = requests.get(self.server.url + "/v1/cameras", timeout=60).json()["cameras"]
        return next(each for each in states if each["name"] == name)

    def await_state(self, name: str, state: str) -> dict[str, Any]:
        await_that(lambda: self.state(name)["state"] == state, f"{name} {state}")
        return self.state(name)

    def rows(self, **query: str) -> list[dict[str, Any]]:
        url = self.server.url + "/v1/journal"
        rows: list[dict[str, Any]] = requests.get(url, query, timeout=60).json()["rows"]
        return rows

    def has_rows(self, count: int, **query: str) -> bool:
        return len(self.rows(**query)) >= count

    def trigger(self, name: str, **query: str) -> requests.Response:
        url = f"{self.server.url}/v1/cameras/{name}/trigger"
        return requests.post(url, params=query, timeout=60)

    def readers(self) -> list[int]:
        """The reader processes of the server."""
        every = children(self.server.worker_pid())
        return [pid for pid in every if b"server.line.cameras.reader" in read(pid, "cmdline")]


def read(pid: int, name: str) -> bytes:
    """A file of a process in /proc; empty if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


@pytest.fixture(scope="module")
def line(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("camera")
    video = folder / "video.avi"
    write_video(video, [(255, 0, 0), (0, 0, 255)])
    login = {"username": USER, "password": PASSWORD}
    with http_camera(RED) as camera:
        url = f"http://127.0.0.1:{camera.port}"
        cameras: list[dict[str, object]] = [
            {"name": "basic", "kind": "http", "url": url + "/basic", **login, "interval_s": 60},
            {"name": "digest", "kind": "http", "url": url + "/digest", **login, "interval_s": 60},
            {"name": "stream", "kind": "mjpeg", "url": url + "/stream", **login, "stall_s": 2},
            {"name": "moving", "kind": "mjpeg", "url": url + "/moving", **login}
            | {"trigger": "motion", "motion_fps": 20, "settle_s": 0.2, "interval_s": 60},
            {"name": "video", "kind": "video", "path": str(video)},
            {"name": "folder", "kind": "folder", "path": str(folder), "interval_s": 30},
            {"name": "nobody", "kind": "http", "url": url + "/basic", "trigger": "post"},
            {"name": "asked", "kind": "http", "url": url + "/basic", **login, "trigger": "post"},
        ]
        cameras[-1]["interval_s"] = 60
        for each in cameras:
            # A machine may stall, and a frame that is late is refused.
            each.setdefault("interval_s", 5)
        with live_server(models=colors, camera=tables(*cameras), traced=True) as server:
            yield Line(server, folder, camera)


@pytest.mark.parametrize("name", ["basic", "digest", "stream"])
def test_network_camera_is_judged_and_journalled(line: Line, name: str) -> None:
    line.await_state(name, "connected")
    await_that(lambda: line.rows(camera=name, label="red"), "a row")
    assert line.server.sample("lineside_camera_connected", camera=name) == 1
    assert line.server.sample("lineside_camera_frame_age_seconds", camera=name) >= 0


def test_motion_that_settles_gives_one_verdict(line: Line) -> None:
    line.await_state("moving", "connected")
    assert line.camera is not None
    colors = ["green", "red"] * 3
    for count, color in enumerate(colors, 1):
        # The first look shows red.
        line.camera.moving = {"green": GREEN, "red": RED}[color]
        await_that(partial(line.has_rows, count, camera="moving"), "a row")
    await_that(lambda: line.trigger("moving", part="P1").status_code == 202, "a trigger")
    rows = await_that(lambda: line.rows(camera="moving", part="P1"), "the row of the trigger")
    assert [row["label"] for row in rows] == ["red"]
    rows = line.rows(camera="moving")
    assert [row["label"] for row in reversed(rows)] == [*colors, "red"]


def test_folder_gives_a_file_once_it_is_whole(line: Line) -> None:
    line.await_state("folder", "connected")
    with (line.folder / "frame.jpg").open("wb") as file:
        file.write(GREEN)
    rows = await_that(lambda: line.rows(camera="folder"), "a row")
    assert [row["label"] for row in rows] == ["green"]


def test_trigger_gives_exactly_one_verdict_of_its_part(line: Line) -> None:
    line.await_state("asked", "connected")
    triggers = []
    for number in range(20):
        part = f"P{number:02}"

        def accepted(part: str = part) -> dict[str, str] | None:
            response = line.trigger("asked", part=part)
            answer: dict[str, str] = response.json()
            return answer if response.status_code == 202 else None

        triggers.append((await_that(accepted, "an accepted trigger")["request_id"], part))
    # Those that were refused have rows without a label.
    await_that(lambda: len(line.rows(camera="asked", label="red")) >= 20, "20 rows")
    rows = line.rows(camera="asked", label="red")
    assert sorted((row["request_id"], row["part"]) for row in rows) == sorted(triggers)


def test_camera_that_refuses_the_login_gives_no_verdict(line: Line) -> None:
    state = line.await_state("nobody", "lost")
    assert state["last_error"] == "the camera answers with the status 401"
    response = line.trigger("nobody", part="P1")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "CAMERA_UNAVAILABLE")
    rows = await_that(lambda: line.rows(camera="nobody"), "the row of the refused trigger")
    assert [(row["part"], row["label"]) for row in rows] == [("P1", None)]


def test_trigger_with_a_body_is_refused(line: Line) -> None:
    """Else the part in it would be lost without a word."""
    url = f"{line.server.url}/v1/cameras/asked/trigger"
    response = requests.post(url, json={"part": "P1"}, timeout=60)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "INVALID_FIELD")
    assert "?part=" in response.json()["error"]["message"]


def test_trigger_of_an_unknown_camera_is_refused(line: Line) -> None:
    response = line.trigger("none")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "CAMERA_NOT_FOUND")


def test_reader_ends_with_a_killed_server(colors: Path, tmp_path: Path) -> None:
    camera: dict[str, object] = {"name": "a", "kind": "folder", "path": str(tmp_path)}
    with live_server(models=colors, camera=tables(camera), traced=True) as server:
        line = Line(server, tmp_path)
        readers = await_that(line.readers, "a reader")
        os.kill(server.worker_pid(), signal.SIGKILL)
        await_that(lambda: not any(read(pid, "cmdline") for pid in readers), "their end")
        others = await_that(line.readers, "the reader of the next worker")
        server.stop()
        assert not any(read(pid, "cmdline") for pid in others)


def test_video_gives_each_frame_once_then_ends(line: Line) -> None:
    """After other tests, during which it goes on."""
    state = line.await_state("video", "ended")
    assert state["frames"] == 2
    rows = await_that(lambda: (r := line.rows(camera="video")) and len(r) == 2 and r, "2 rows")
    assert {row["label"] for row in rows} == {"red", "blue"}
    response = line.trigger("video")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "CAMERA_UNAVAILABLE")


def test_stopped_reader_is_replaced(line: Line) -> None:
    """A read that never returns: the process is stopped as a whole."""
    line.await_state("stream", "connected")
    before = set(line.readers())
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    await_that(lambda: not before & set(line.readers()), "new readers")
    line.await_state("stream", "connected")


def test_password_is_nowhere_to_be_read(line: Line) -> None:
    shown = json.dumps([line.server.lines, [line.state("basic")]])
    for pid in line.readers():
        shown += (read(pid, "cmdline") + read(pid, "environ")).decode()
    assert PASSWORD not in shown


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"kind": "http", "url": "ftp://a/b"}, "url can't be that"),
        ({"kind": "rtsp", "url": "rtsp://a:secret@b/"}, "url can't have a user or a password"),
        ({"kind": "http", "url": "http://[x/"}, "url has a host or a port that can't be one"),
        ({"kind": "mjpeg", "url": "http://h:99999/"}, "url has a host or a port"),
        ({"kind": "http", "url": "http://a/", "password": "p"}, "password needs a username"),
        ({"kind": "video"}, "path is missing"),
        ({"kind": "folder", "path": "a", "interval_s": 0}, "interval_s"),
        ({"kind": "folder", "path": "a", "trigger": "motion"}, "a folder can't be motion"),
        ({"kind": "usb", "settle_s": 1}, 'settle_s needs trigger = "motion"'),
        (
            {"kind": "usb", "trigger": "motion", "motion_region": [0.5, 0, 0.6, 1]},
            "motion_region should be [x, y, width, height]",
        ),
    ],
)
def test_camera_table_with_a_fault_is_refused(table: dict[str, object], fault: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"LINESIDE_CAMERA": tables({"name": "c", **table})})
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)
