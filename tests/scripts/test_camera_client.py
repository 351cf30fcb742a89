"""`camera.py send`: frames of all sources to a real server, also while it is away."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from camera_client import command
from camera_client.exchange import target
from camera_client.frames import Frame, Spool, WaitingFrames
from camera_client.report import Tally
from camera_client.sending import CameraClient, SendOptions
from camera_client.sources import Folder, Simulated, Source, Video
from images import encode, plain
from job_workers import await_that
from pulled_cameras import write_video
from server_process import (
    ROOT,
    LiveServer,
    answering,
    environ_without_coverage,
    free_port,
    live_server,
)

RED, GREEN = (encode(plain(color), "PNG") for color in ((255, 0, 0), (0, 255, 0)))
PICTURES = (Frame(RED, 0, kind="red"), Frame(GREEN, 0, kind="green"))


def client_of(url: str, source: Source, spool: Spool | None = None, **options: Any) -> CameraClient:
    made = SendOptions(options.get("camera", "st4"), spool, options.get("max_age_s", 600.0))
    return CameraClient(source, target(url, None, 60.0), made, Tally())


def accounted(client: CameraClient, in_spool: int = 0) -> bool:
    """Whether each frame ended in one way."""
    tally = client.tally
    ended = tally.answered + tally.refused.total() + tally.dropped + tally.lost
    return tally.taken == ended + in_spool


def test_each_frame_is_answered_once_over_an_outage(colors: Path, tmp_path: Path) -> None:
    """The server stops in the middle and comes back: the spool keeps what came meanwhile."""
    port, data = free_port(), tmp_path / "data"
    spool = Spool(tmp_path / "spool", 10_000_000)
    source = Simulated(PICTURES, 20.0, 60)
    client = client_of(f"http://127.0.0.1:{port}", source, spool, camera="outage")
    running = threading.Thread(target=client.run)
    with live_server(models=colors, data=data, port=port):
        running.start()
        await_that(lambda: client.tally.answered >= 5, "five answers")
    await_that(lambda: spool.count >= 5, "frames in the spool")
    with live_server(models=colors, data=data, port=port) as server:
        running.join(120)
        assert not running.is_alive()
        tally = client.tally
        assert (tally.taken, tally.answered, tally.right) == (60, 60, 60)
        assert tally.is_complete()
        # A connection that was begun as the server stopped may have lasted over the outage, so no
        # try has to have failed.
        assert spool.count == 0

        def rows() -> Counter[str]:
            url = server.url + "/v1/journal?camera=outage&limit=100"
            answer = requests.get(url, timeout=60).json()
            return Counter(row["part"] for row in answer["rows"] if row["label"])

        await_that(lambda: rows().total() == 60, "60 rows")
        assert set(rows()) == {f"{number:06d}" for number in range(1, 61)}


def test_a_camera_without_spool_drops_all_but_the_newest() -> None:
    client = client_of(
        f"http://127.0.0.1:{free_port()}", Simulated(PICTURES, 500.0, 20), max_age_s=0.5
    )
    client.run()
    assert (client.tally.taken, client.tally.answered) == (20, 0)
    assert client.tally.dropped > 0
    assert client.tally.lost >= 1
    assert accounted(client)
    assert not client.tally.is_complete()


def test_frames_in_the_spool_are_sent_by_the_next_run(
    colors_server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    spool = Spool(tmp_path / "spool", 10_000_000)
    client = client_of(away, Simulated(PICTURES, 200.0, None), spool)
    running = threading.Thread(target=client.run)
    running.start()
    await_that(lambda: spool.count >= 3, "frames in the spool")
    client.stop.set()
    running.join(60)
    assert accounted(client, spool.count)
    assert client.tally.is_complete()
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / "empty"), colors_server.url, "--spool", str(spool.folder)]
    assert command.main(arguments) == 0
    assert Spool(spool.folder, 1).count == 0
    assert f"answered                {spool.count}" in capsys.readouterr().out


def test_a_folder_is_sent_by_the_standard_library_alone(
    colors_server: LiveServer, tmp_path: Path
) -> None:
    """-S: no package of the environment can be imported."""
    (tmp_path / "red.png").write_bytes(RED)
    (tmp_path / "green.png").write_bytes(GREEN)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no frame")
    script = [sys.executable, "-S", str(ROOT / "scripts" / "camera.py"), "send", str(tmp_path)]
    done = subprocess.run(
        [*script, colors_server.url, "--camera", "st-folder", "--timeout", "60"],
        env=environ_without_coverage(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "UNSUPPORTED_IMAGE" in done.stderr
    counts = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert (counts["frames"], counts["answered"], counts["refused"]) == ("3", "2", "1")
    query = {"camera": "st-folder"}

    def parts() -> set[str]:
        rows = requests.get(colors_server.url + "/v1/journal", query, timeout=60).json()["rows"]
        return {row["part"] for row in rows}

    await_that(lambda: parts() == {"red", "green", "broken"}, "three rows")


def test_send_names_a_missing_module(tmp_path: Path) -> None:
    script = [sys.executable, "-S", "-E", str(ROOT / "scripts" / "camera.py"), "send", "0"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "camera.py needs the Python module cv2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_watched_folder_gives_the_newest_first(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"old{number}.jpg"
        path.write_bytes(RED)
        os.utime(path, (100 + number, 100 + number))
    stop, names = threading.Event(), []

    def fail(reason: str) -> None:
        pytest.fail(reason)

    for frame in Folder(tmp_path, fail, watch=True).frames(stop):
        names.append(frame.part)
        if len(names) == 2:
            (tmp_path / "new.jpg").write_bytes(GREEN)
        if len(names) == 4:
            stop.set()
    assert names[:2] == ["old2", "old1"]
    assert set(names[2:]) == {"old0", "new"}


def test_what_is_no_plain_file_is_no_frame(tmp_path: Path) -> None:
    """A pipe would be read for ever, and a file that can't be read is lost alone."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "nothing.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "red.jpg").write_bytes(RED)
    frames = Folder(tmp_path, lambda _: None, watch=False).frames(threading.Event())
    assert [frame.part for frame in frames] == ["red"]


@pytest.mark.parametrize("key", ["k\nHost: x", "k→"])
def test_a_key_that_no_header_holds_is_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main([str(tmp_path), "http://127.0.0.1:9", "--key", key])
    assert "the key has characters that no key has" in capsys.readouterr().err


def test_a_video_is_sent_in_steps_of_its_own_time(tmp_path: Path) -> None:
    write_video(tmp_path / "line.avi", [(255, 0, 0)] * 20)
    for rate, count in ((None, 20), (5.0, 10)):
        video = Video(str(tmp_path / "line.avi"), rate, "A-", lambda _: None)
        frames = list(video.frames(threading.Event()))
        assert [frame.part for frame in frames] == [f"A-{n:06d}" for n in range(1, count + 1)]
        assert all(frame.data[:2] == b"\xff\xd8" for frame in frames)


def test_a_camera_that_is_not_there_is_tried_again() -> None:
    faults, stop = [], threading.Event()

    def report(fault: str) -> None:
        faults.append(fault)
        stop.set()

    assert list(Video("/dev/video99", None, "", report).frames(stop)) == []
    assert faults == ["the camera or video can't be opened; trying again"]


@pytest.mark.parametrize("source", ["no-such-file.mp4", "no/such/folder"])
def test_a_source_that_is_not_there_ends_the_program(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([source, "http://127.0.0.1:9"]) == 1
    assert f"there is no file or folder {source}" in capsys.readouterr().err


class Scripted(BaseHTTPRequestHandler):
    """Answers with the `replies` in turn, (status, headers), and then with verdicts."""

    replies: ClassVar[list[tuple[int, dict[str, str]]]] = []
    times: ClassVar[list[float]] = []
    keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.times.append(time.monotonic())
        self.keys.append(self.headers["Authorization"])
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers = self.replies.pop(0) if self.replies else (200, {})
        body: dict[str, object] = {"verdict": "pass"}
        if status != 200:
            body = {"error": {"code": http.client.responses[status], "message": "so it is"}}
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (*headers.items(), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def scripted() -> Iterator[str]:
    Scripted.replies.clear()
    Scripted.times.clear()
    Scripted.keys.clear()
    with answering(Scripted) as url:
        yield url


def test_a_retry_waits_as_long_as_the_server_says(scripted: str) -> None:
    Scripted.replies += [(503, {"Retry-After": "1"}), (401, {})]
    client = client_of(scripted, Simulated(PICTURES, 5.0, 1))
    client.run()
    assert (client.tally.answered, client.tally.tries_failed) == (1, 2)
    assert Scripted.times[1] - Scripted.times[0] >= 1.0


@pytest.mark.parametrize("status", [400, 413, 415, 422, 500])
def test_a_refusal_for_good_is_not_tried_again(scripted: str, status: int) -> None:
    Scripted.replies += [(status, {})]
    client = client_of(scripted, Simulated(PICTURES, 100.0, 2))
    client.run()
    assert client.tally.refused.total() == 1
    assert client.tally.tries_failed == 0
    assert accounted(client)


def test_only_a_spool_tries_a_late_frame_again(scripted: str, tmp_path: Path) -> None:
    """The server says that the same request can't succeed; without its time of capture it can."""
    for spool, answered in ((None, 0), (Spool(tmp_path / "spool", 10_000_000), 1)):
        Scripted.replies += [(503, {"X-Should-Retry": "false"})]
        client = client_of(scripted, Simulated(PICTURES, 5.0, 1), spool)
        client.run()
        assert (client.tally.answered, client.tally.refused.total()) == (answered, 1 - answered)


def test_the_key_comes_from_option_or_environment(
    scripted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(RED)
    monkeypatch.setenv("LINESIDE_KEY", "k-env")
    assert command.main([str(tmp_path), scripted]) == 0
    assert command.main([str(tmp_path), scripted, "--key", "k-option"]) == 0
    assert Scripted.keys == ["Bearer k-env", "Bearer k-option"]


def frame_of(number: int, size: int = 100) -> Frame:
    return Frame(bytes(size), 1e9 + number, part=str(number), kind="good")


def test_a_full_spool_loses_its_oldest_frames(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 500)
    assert [spool.add(frame_of(number)) for number in range(4)] == [0, 0, 0, 1]
    assert spool.add(frame_of(9, 1000)) == 1
    order = []
    while item := Spool(tmp_path, 500).newest():
        assert item.path is not None
        order.append(item.frame)
        item.path.unlink()
    assert order == [frame_of(3), frame_of(2), frame_of(1)]


def test_a_damaged_spool_file_is_lost_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10_000)
    spool.add(frame_of(1))
    (tmp_path / "99999999999999999-1-000001.frame").write_bytes(b"cut off")
    (tmp_path / "half.tmp").write_bytes(b"half")
    lost: list[str] = []
    waiting = WaitingFrames(
        Spool(tmp_path, 10_000), lambda _: None, lambda _, why: lost.append(why)
    )
    item = waiting.take()
    assert item is not None
    assert item.frame == frame_of(1)
    assert ["is damaged" in why for why in lost] == [True]
    waiting.settled(item)
    assert list(tmp_path.iterdir()) == []
