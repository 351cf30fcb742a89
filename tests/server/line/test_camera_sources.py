"""The sources of cameras, and what is judged of their frames: never the picture of another part."""

import io
import itertools
import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from images import encode, plain
from job_workers import await_that, serving

from server.config.cameras import FolderCamera
from server.config.load import load
from server.errors import LinesideError
from server.line.cameras.camera import Camera
from server.line.cameras.judge import Judge, Trigger
from server.line.cameras.sources import (
    FRAME_BYTES_MAX,
    Folder,
    Shot,
    Snapshot,
    SourceError,
    parts,
    read_whole,
)
from server.recognition.answers import FrameRefused

RED, GREEN = encode(plain((255, 0, 0)), "JPEG"), encode(plain((0, 255, 0)), "JPEG")


def test_file_from_before_a_trigger_is_not_its_frame(tmp_path: Path) -> None:
    """Neither if it was seen, nor if it came since the last look."""
    source = Folder({"path": str(tmp_path)})
    (tmp_path / "1.jpg").write_bytes(RED)
    asked = time.monotonic()
    assert source.take(asked, 0.3) is None
    (tmp_path / "2.jpg").write_bytes(RED)
    assert source.take(asked, 0.0) is None
    asked = time.monotonic()
    assert source.take(asked, 0.3) is None
    (tmp_path / "3.jpg").write_bytes(GREEN)
    shot = await_that(lambda: source.take(asked, 0.3), "the new file")
    assert (shot.data, shot.captured > asked) == (GREEN, True)


def test_file_begun_before_a_trigger_is_not_its_frame(tmp_path: Path) -> None:
    source = Folder({"path": str(tmp_path)})
    with (tmp_path / "1.jpg").open("wb") as file:
        file.write(RED[:50])
        file.flush()
        asked = time.monotonic()
        assert source.take(asked, 0.0) is None
        file.write(RED[50:])
    assert source.take(asked, 0.5) is None


def test_entries_that_are_no_files_lose_no_camera(tmp_path: Path) -> None:
    source = Folder({"path": str(tmp_path)})
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "none.jpg").symlink_to("nowhere")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    asked = time.monotonic()
    assert source.take(asked, 0.2) is None
    (tmp_path / "1.jpg").write_bytes(GREEN)
    assert await_that(lambda: source.take(asked, 0.3), "the file").data == GREEN


class SlowPart(io.BytesIO):
    """A part of a stream whose picture comes after its headers; `asked`: a time in between."""

    asked = 0.0

    def read(self, size: int | None = -1) -> bytes:
        self.asked = time.monotonic()
        return super().read(size)


def test_part_begun_before_a_trigger_is_older_than_it() -> None:
    head = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(RED)
    part = SlowPart(head + RED)
    shot = next(parts(part))
    assert shot.data == RED
    assert shot.captured <= part.asked


def test_file_that_is_written_again_is_new(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(RED)
    source = Folder({"path": str(tmp_path)})
    # A folder that was not changed for long is not listed again.
    os.utime(tmp_path, (1, 1))
    assert source.take(0.0, 0.3) is None
    (tmp_path / "1.jpg").write_bytes(GREEN)
    shot = await_that(lambda: source.take(0.0, 0.3), "the file")
    assert (shot.data, shot.name) == (GREEN, "1.jpg")


def test_part_without_a_length_ends_at_the_boundary() -> None:
    picture = RED + b"\r\n\n--x\r\n" + RED
    head = b"--next\r\nContent-Type: image/jpeg\r\n\r\n"
    answer = io.BytesIO(head + picture + b"\r\n" + head + GREEN + b"\r\n--next--\r\n")
    assert [shot.data for shot in parts(answer)] == [picture, GREEN]


def test_part_that_breaks_off_is_no_frame() -> None:
    head = b"--next\r\nContent-Type: image/jpeg\r\n"
    for length in (b"", b"Content-Length: %d\r\n" % len(RED)):
        assert list(parts(io.BytesIO(head + length + b"\r\n" + RED[:-5]))) == []


@pytest.mark.parametrize("length", ["-1", "x", "", str(FRAME_BYTES_MAX + 1), "7" * 5000])
def test_part_of_an_unusable_length_ends_the_stream(length: str) -> None:
    head = f"--next\r\nContent-Length: {length}\r\n\r\n".encode()
    with pytest.raises(SourceError, match="without a usable length"):
        list(parts(io.BytesIO(head + RED)))


class ShortPicture(BaseHTTPRequestHandler):
    """Promises more than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(RED) + 1000))
        self.end_headers()
        self.wfile.write(RED)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_picture_that_breaks_off_is_no_frame() -> None:
    with serving(HTTPServer(("127.0.0.1", 0), ShortPicture)) as host:
        table = {"url": f"http://{host}/", "username": "", "password": ""}
        with pytest.raises(SourceError, match="broke off its picture"):
            Snapshot(table)


class DamagedLogin(ShortPicture):
    """Asks for a login by a header that is damaged."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Digest realm="cam", nonce=, qop="auth"')
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_login_that_can_not_be_read_is_said() -> None:
    with serving(HTTPServer(("127.0.0.1", 0), DamagedLogin)) as host:
        table = {"url": f"http://{host}/", "username": "admin", "password": "secret"}
        with pytest.raises(SourceError, match="asks for a login"):
            Snapshot(table)


def test_picture_beyond_the_most_is_not_cut() -> None:
    assert read_whole(io.BytesIO(bytes(FRAME_BYTES_MAX + 1))) == b""
    assert read_whole(io.BytesIO(RED)) == RED


@pytest.fixture
def refused() -> list[FrameRefused]:
    return []


@pytest.fixture
def judge(refused: list[FrameRefused]) -> Judge:
    """A judge without a model, which no frame here gets to."""

    def no_model(*_: object) -> Any:
        raise LinesideError("no model")

    return Judge(load({}), no_model, lambda _: None, refused.append)


@pytest.mark.parametrize(
    ("data", "code"), [(b"", "UNDECODABLE_IMAGE"), (bytes(17_000_000), "BODY_TOO_LARGE")]
)
def test_picture_that_no_post_could_send_is_refused(
    judge: Judge, refused: list[FrameRefused], data: bytes, code: str
) -> None:
    table = FolderCamera(name="a", path="/", interval_s=60)
    trigger = Trigger("r1", time.monotonic(), "P1")
    error = judge.judge(table, trigger, Shot(time.monotonic(), data, time.monotonic()))
    assert error is not None
    assert [(each.code, each.part) for each in refused] == [(code, "P1")]


def test_trigger_that_waits_at_the_stop_has_its_end(
    judge: Judge, refused: list[FrameRefused], tmp_path: Path
) -> None:
    table = FolderCamera(name="a", path=str(tmp_path), trigger="post", stall_s=60)
    camera = Camera(table, judge)
    camera.start()
    await_that(camera.is_connected, "the camera")
    camera.trigger(Trigger("r1", time.monotonic(), "P1"))
    camera.stop("the test ends")
    camera.join(60)
    assert [(each.request_id, each.part, each.code) for each in refused] == [
        ("r1", "P1", "CAMERA_UNAVAILABLE")
    ]


def test_trigger_beside_a_timed_frame_has_a_file_too(
    judge: Judge, refused: list[FrameRefused], tmp_path: Path
) -> None:
    """And a frame without a part has its file's name, if the camera is set so."""
    table = FolderCamera(
        name="a", path=str(tmp_path), interval_s=60, stall_s=60, part_from_name=True
    )
    camera, names = Camera(table, judge), itertools.count()
    camera.start()
    await_that(camera.is_connected, "the camera")
    camera.trigger(Trigger("r1", time.monotonic(), "P1"))

    def both() -> bool:
        (tmp_path / f"{next(names)}.jpg").write_bytes(RED)
        return len(refused) > 1

    await_that(both, "both frames")
    camera.stop("the test ends")
    camera.join(60)
    parts_of = {each.request_id == "r1": each.part for each in refused}
    assert parts_of[True] == "P1"
    assert parts_of[False].endswith(".jpg")
