"""POST and DELETE /v1/cameras, and the newest frame of a camera."""

import json
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from images import encode, plain
from job_workers import await_that
from sites import Site, error
from werkzeug.test import TestResponse

from server.app import AT_END, shut_down
from server.config.cameras import FolderCamera
from server.line.cameras.service import CAMERAS_MAX
from server.store.cameras import FILE

RED = encode(plain((255, 0, 0)), "JPEG")
PASSWORD = "c4mera-p@ss"
NETWORK = {"name": "net", "kind": "http", "url": "http://127.0.0.1:9/", "username": "u"}


class Line(Site):
    """A site with the camera `fixed` in its settings; `frames` is the folder of all cameras."""

    def __init__(self, models: Path, folder: Path) -> None:
        self.frames, self.file = folder / "frames", folder / "data" / FILE
        self.frames.mkdir(exist_ok=True)
        fixed = FolderCamera(name="fixed", path=str(self.frames), trigger="post")
        super().__init__(models, folder, camera=(fixed,))

    def ask(self, method: str, path: str = "", body: object = None, key: str = "") -> TestResponse:
        headers = {"X-API-Key": key or self.keys["admin"]}
        client = self.app.test_client()
        return client.open(f"/v1/cameras{path}", method=method, json=body, headers=headers)

    def add(self, name: str = "gate", **changes: object) -> TestResponse:
        table = {"name": name, "kind": "folder", "path": str(self.frames), "interval_s": 60}
        return self.ask("POST", body=table | changes)

    def states(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in self.ask("GET").get_json()["cameras"]}

    def rows(self) -> list[dict[str, Any]]:
        """The journal's rows of the camera `gate`, the newest first."""
        key = {"X-API-Key": self.keys["admin"]}
        rows: list[dict[str, Any]] = self.get("/v1/journal?camera=gate", **key).get_json()["rows"]
        return rows

    def has_rows(self, count: int) -> bool:
        return len(self.rows()) >= count

    def audited(self) -> list[tuple[str, str, str]]:
        rows = self.get("/v1/audit", **{"X-API-Key": self.keys["admin"]}).get_json()["changes"]
        return [(row["action"], row["camera"], row["code"]) for row in rows]


def close(app: Flask) -> None:
    shut_down(app.extensions[AT_END])


@pytest.fixture
def line(colors: Path, tmp_path: Path) -> Iterator[Line]:
    line = Line(colors, tmp_path)
    yield line
    close(line.app)


def test_added_camera_is_read_until_it_is_removed(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert line.add().status_code == 200
    await_that(lambda: line.states()["gate"]["state"] == "connected", "the camera")
    assert error(line.ask("GET", "/gate/frame"))["code"] == "CAMERA_UNAVAILABLE"
    (line.frames / "1.jpg").write_bytes(RED)
    await_that(lambda: line.states()["gate"]["frames"], "a frame")
    frame = line.ask("GET", "/gate/frame")
    assert (frame.content_type, frame.data) == ("image/jpeg", RED)
    assert 'connected{camera="gate"} 1.0' in metrics(line)
    removed = line.ask("DELETE", "/gate")
    assert (removed.status_code, removed.get_json()["state"]) == (200, "ended")
    assert "gate" not in line.states()
    assert 'connected{camera="gate"}' not in metrics(line)
    assert line.ask("DELETE", "/gate").status_code == 404
    assert line.audited() == [("remove", "gate", ""), ("add", "gate", "")]
    assert [text for text in caplog.messages if text.startswith("camera changed")]


def metrics(line: Line) -> str:
    return line.get("/metrics", **{"X-API-Key": line.keys["metrics"]}).text


def test_added_camera_outlives_a_restart(colors: Path, tmp_path: Path) -> None:
    first = Line(colors, tmp_path)
    first.add()
    close(first.app)
    first.keys_file.unlink()
    second = Line(colors, tmp_path)
    await_that(lambda: second.states()["gate"]["state"] == "connected", "the camera")
    close(second.app)


def test_password_of_an_added_camera_is_kept_alone(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    answer = line.ask("POST", body=NETWORK | {"password": PASSWORD})
    assert answer.status_code == 200
    wrong = line.ask("POST", body=NETWORK | {"name": "b", "password": [PASSWORD]})
    await_that(lambda: line.states()["net"]["last_error"], "the loss")
    audit = (line.file.parent / "audit.jsonl").read_text()
    shown = [answer.text, wrong.text, audit, line.ask("GET").text, *map(str, caplog.records)]
    shown += [json.dumps(getattr(record, "fields", {})) for record in caplog.records]
    assert PASSWORD not in "".join(shown)
    assert PASSWORD in line.file.read_text()
    assert stat.S_IMODE(line.file.stat().st_mode) == 0o600


FAULTS: list[tuple[object, str]] = [
    ({"name": "a"}, "kind is missing"),
    ({"name": "a", "kind": "tape"}, "kind can't be 'tape'"),
    ({"kind": "folder", "path": "a"}, "name is missing"),
    ({"name": "a/b", "kind": "folder", "path": "a"}, "name"),
    ({"name": "a", "kind": "folder", "path": "a", "fps": 1}, "fps"),
    ({"name": "a", "kind": "http", "url": "http://u:p@h/"}, "url can't have a user"),
    ({"name": "a", "kind": "folder", "path": "a", "interval_s": "1"}, "interval_s"),
    ([], "object"),
]


def test_added_camera_with_a_fault_is_refused(line: Line) -> None:
    for table, message in FAULTS:
        answer = line.ask("POST", body=table)
        assert (answer.status_code, error(answer)["code"]) == (400, "INVALID_FIELD")
        assert message in error(answer)["message"]
    assert line.ask("POST", body={"name": "a" * 20_000}).status_code == 413
    assert not line.file.exists()


def test_camera_of_the_settings_can_not_be_changed(line: Line) -> None:
    for answer, code in (
        (line.add("fixed"), "CAMERA_EXISTS"),
        (line.ask("DELETE", "/fixed"), "CAMERA_IN_SETTINGS"),
    ):
        assert (answer.status_code, error(answer)["code"]) == (409, code)
    assert "fixed" in line.states()
    assert line.audited() == [
        ("remove", "fixed", "CAMERA_IN_SETTINGS"),
        ("add", "fixed", "CAMERA_EXISTS"),
    ]


def test_region_of_an_added_camera_is_judged_alone(line: Line, tmp_path: Path) -> None:
    """Left half red, right half green: the region decides, and the frame is still shown whole."""
    halves = np.hstack([plain((255, 0, 0)), plain((0, 255, 0))])
    assert line.add(region=[0, 0, 0.5, 1]).status_code == 200
    for number, (region, label) in enumerate(
        [([0.5, 0, 0.5, 1], "green"), ([0, 0, 0.4, 1], "red")]
    ):
        changed = line.ask("POST", "/gate", {"region": region})
        assert (changed.status_code, changed.get_json()["region"]) == (200, region)
        await_that(lambda: line.states()["gate"]["state"] == "connected", "the camera")
        (line.frames / f"{number}.png").write_bytes(encode(halves, "PNG"))
        await_that(lambda: line.states()["gate"]["frames"], "a frame")
        await_that(partial(line.has_rows, number + 1), "a row")
        assert line.rows()[0]["label"] == label
        frame = line.ask("GET", "/gate/frame")
        assert (frame.content_type, frame.data) == ("image/png", encode(halves, "PNG"))
    assert line.states()["gate"]["added"]
    assert line.audited()[:2] == [("change", "gate", "")] * 2


def test_damaged_frame_of_a_camera_with_a_region_is_refused(line: Line) -> None:
    """Its first half could be decoded, and shows a good part."""
    line.add(region=[0, 0, 1, 0.5])
    await_that(lambda: line.states()["gate"]["state"] == "connected", "the camera")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = encode(noise, "JPEG")
    (line.frames / "1.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    row = await_that(lambda: next(iter(line.rows()), None), "a row")
    assert (row["code"], row["verdict"]) == ("UNDECODABLE_IMAGE", None)


def test_camera_is_changed_within_its_bounds(line: Line) -> None:
    line.ask("POST", body=NETWORK | {"password": PASSWORD})
    for keys, message in (
        ({"region": [0, 0, 2, 1]}, "region should be"),
        ({"name": "other"}, "name of a camera stays"),
        ({"fps": 1}, "fps"),
    ):
        answer = line.ask("POST", "/net", keys)
        assert (answer.status_code, error(answer)["code"]) == (400, "INVALID_FIELD")
        assert message in error(answer)["message"]
    assert line.ask("POST", "/net", {"interval_s": 7}).get_json()["interval_s"] == 7
    assert PASSWORD in line.file.read_text()
    assert line.ask("POST", "/nobody", {}).status_code == 404
    assert line.ask("POST", "/fixed", {}).status_code == 409


def test_password_of_a_camera_goes_to_no_other_server(line: Line) -> None:
    """Nobody can read it, so nobody may have it sent to a server of his own."""
    line.ask("POST", body=NETWORK | {"password": PASSWORD})
    same = NETWORK["url"].rstrip("/") + "/other"
    assert line.ask("POST", "/net", {"url": same}).status_code == 200
    other = {"url": "http://127.0.0.1:2/"}
    refused = line.ask("POST", "/net", other)
    assert (refused.status_code, error(refused)["code"]) == (400, "INVALID_FIELD")
    assert "another server" in error(refused)["message"]
    assert "127.0.0.1:2" not in line.file.read_text()
    assert line.ask("POST", "/net", other | {"password": ""}).status_code == 200
    assert PASSWORD not in line.file.read_text()


def test_cameras_beyond_the_most_are_refused(line: Line, monkeypatch: Any) -> None:
    assert CAMERAS_MAX >= 10
    monkeypatch.setattr("server.line.cameras.service.CAMERAS_MAX", 2)
    assert line.add("a").status_code == 200
    answer = line.add("b")
    assert (answer.status_code, error(answer)["code"]) == (409, "CAMERAS_FULL")


def test_cameras_need_the_right_of_an_administrator(line: Line) -> None:
    for path, method in (("", "POST"), ("/fixed", "DELETE"), ("/fixed/frame", "GET")):
        answer = line.ask(
            method, path, {} if method == "POST" else None, key=line.keys["recognize"]
        )
        assert answer.status_code == 403, (path, answer.text)


def test_damaged_file_of_cameras_is_set_aside(colors: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).write_text('[{"name": "a"}')
    line = Line(colors, tmp_path)
    assert list(line.states()) == ["fixed"]
    assert line.add().status_code == 200
    close(line.app)
    assert len(list(line.file.parent.glob(f"*{FILE}*"))) == 2


def test_camera_that_can_not_be_used_takes_no_other_with_it(
    colors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in the file, until a camera of its name is added."""
    good = {"name": "good", "kind": "folder", "path": str(tmp_path), "trigger": "post"}
    newer = {"name": "newer", "kind": "hologram"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / FILE).write_text(json.dumps([newer, good, 3]))
    line = Line(colors, tmp_path)
    assert sorted(line.states()) == ["fixed", "good"]
    logged = [vars(each)["fields"] for each in caplog.records if "can't be used" in each.message]
    assert [each["camera"] for each in logged] == ["newer", "number 3"]
    assert "kind can't be" in logged[0]["reason"]
    assert line.add().status_code == 200
    assert newer in json.loads(line.file.read_text())
    assert line.add("newer").status_code == 200
    close(line.app)
    assert newer not in json.loads(line.file.read_text())
