"""What the console is told of the line: the last frames, their counts, pictures, events."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from server_process import LiveServer, live_server
from sites import NOW, Site, make_app

from server.api.line.last_pictures import FRESH_S, REST, LastPictures
from server.api.recognize.pictures import Pictures
from server.config.settings import Settings
from server.config.thread_budget import EVENTS_REQUESTS_MAX
from server.engine import Engine
from server.errors import NotFoundError
from server.observe.recent import LISTED, PICTURES_MAX, RecentFrames
from server.recognition.answers import Answer, FrameAnswered, FrameRefused, Options, Prediction
from server.store.keys import add_key, revoke_key

RED, GREEN = encode(plain((255, 0, 0)), "PNG"), encode(plain((0, 255, 0)), "PNG")


def answered(camera: str = "st4", verdict: str | None = "pass", ms: float = 5.0) -> FrameAnswered:
    best = Prediction(0, "good", 0.9)
    answer = Answer("parts", 1, best, (best,), verdict, {"total": ms / 1000})
    return FrameAnswered(1.5e9, "id", answer, Options(camera=camera), RED)


def test_last_frames_are_listed_in_their_order() -> None:
    recent = RecentFrames()
    for number in range(LISTED + 5):
        recent.answered(answered(ms=number))
    recent.refused(FrameRefused(1.5e9, "id", 503, "OVERLOADED", camera="st4", let_in=True))
    recent.refused(FrameRefused(1.5e9, "id", 401, "UNAUTHORIZED"))
    frames = recent.since(0)
    assert [frame.number for frame in frames] == list(range(7, LISTED + 7))
    assert (frames[-1].code, frames[-1].verdict) == ("OVERLOADED", None)
    assert [frame.number for frame in recent.since(LISTED + 5)] == [LISTED + 6]
    assert recent.since(LISTED + 6) == []
    minute = recent.last_minute()
    assert (minute.frames, minute.verdicts, minute.refused) == (LISTED + 6, {"pass": LISTED + 5}, 1)
    assert (minute.p50_ms, minute.p99_ms) == (32, 64)


def test_waiting_for_a_frame_ends_with_it() -> None:
    recent = RecentFrames()
    threading.Timer(0.05, recent.answered, [answered()]).start()
    assert [frame.label for frame in recent.since(0, timeout_s=60)] == ["good"]


def test_pictures_are_kept_only_while_somebody_looks() -> None:
    recent = RecentFrames()
    recent.answered(answered())
    assert recent.pictures() == []
    recent.since(0)
    for number in range(PICTURES_MAX + 3):
        recent.answered(answered(f"st{number}"))
    assert recent.pictures() == [f"st{number}" for number in range(3, PICTURES_MAX + 3)]
    recent._watched = -1e9
    recent.answered(answered())
    assert recent.pictures() == []


def test_now_and_settings_without_secrets(colors: Path, tmp_path: Path) -> None:
    site = Site(colors, tmp_path, webhook_secret="abracadabra", max_waiting=7)
    now = site.bearer(site.keys["admin"], "/v1/now?after=3").get_json()
    assert (now["number"], now["frames"], now["cameras"], now["outputs"]) == (0, [], [], [])
    answer = site.bearer(site.keys["admin"], "/v1/settings")
    rows = {row["name"]: row for row in answer.get_json()["settings"]}
    assert "abracadabra" not in answer.text
    assert rows["webhook_secret"]["value"] == "***"
    assert (rows["output"]["value"], rows["output"]["source"]) == ("", "default")
    assert (rows["max_waiting"]["value"], rows["max_waiting"]["source"]) == ("7", "file or flag")
    assert rows["max_side"]["source"] == "default"
    assert site.bearer(site.keys["recognize"], "/v1/now").status_code == 403
    picture = site.bearer(site.keys["admin"], "/v1/now/picture?camera=st4")
    assert picture.status_code == 404


@pytest.fixture(scope="module")
def server(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(models=colors) as server:
        yield server


def events(response: requests.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for data in response.iter_lines(chunk_size=1):
        line = data.decode()
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def stream(server: LiveServer) -> requests.Response:
    return requests.get(server.url + "/v1/events", stream=True, timeout=60)


def test_frames_come_as_events_with_their_picture(server: LiveServer) -> None:
    with stream(server) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        heard = events(response)
        assert next(heard)[0] == "now"
        request_id = server.recognize(GREEN, camera="gate", part="A1").json()["request_id"]
        frames = next(data for name, data in heard if name == "frames" or data["frames"])
        frame = (frames if isinstance(frames, list) else frames["frames"])[-1]
        assert (frame["request_id"], frame["camera"], frame["part"]) == (request_id, "gate", "A1")
        assert frame["label"] == "green"
    picture = requests.get(server.url + "/v1/now/picture", {"camera": "gate"}, timeout=60)
    assert picture.headers["Content-Type"] == "image/jpeg"
    assert picture.content[:2] == b"\xff\xd8"


def test_streams_have_a_limit(server: LiveServer) -> None:
    open_ones = [stream(server) for _ in range(EVENTS_REQUESTS_MAX)]
    try:
        refused = [each for each in (stream(server) for _ in range(3)) if each.status_code == 503]
        assert refused
        assert refused[0].json()["error"]["code"] == "OVERLOADED"
        assert requests.get(server.url + "/v1/now", timeout=60).status_code == 200
    finally:
        for each in open_ones:
            each.close()


def test_open_stream_does_not_hold_up_the_end(colors: Path) -> None:
    with live_server(models=colors) as server, stream(server) as response:
        heard = events(response)
        next(heard)
        assert server.stop(signal.SIGTERM) == 0
        list(heard)
    assert not any(line.get("level") == "error" for line in server.lines)


def test_keys_guard_the_line(colors: Path, tmp_path: Path) -> None:
    add_key(tmp_path / "keys.jsonl", "x", ["recognize"], now=NOW)
    client = make_app(colors, tmp_path / "keys.jsonl").test_client()
    for path in ("/v1/now", "/v1/events", "/v1/now/picture", "/v1/settings"):
        assert client.get(path).status_code == 401


def test_alerts_and_parts_are_answered(server: LiveServer) -> None:
    answer = requests.get(server.url + "/v1/alerts", timeout=60).json()
    parts = {each["part"]: each["state"] for each in answer["parts"]}
    assert (parts["models that serve"], parts["outputs connected"]) == ("ok", "off")
    assert answer["unseen"] == ["LinesideDown"]
    assert all(each["state"] in ("pending", "firing") for each in answer["alerts"])


def test_stream_ends_with_its_key(colors: Path, tmp_path: Path) -> None:
    """Whoever is signed in sees nothing more once the key is revoked."""
    site = Site(colors, tmp_path)
    client = site.app.test_client()
    client.post("/v1/session", json={"key": site.keys["admin"]})
    stream = client.get("/v1/events").iter_encoded()
    assert next(stream).startswith(b"retry: ")
    assert next(stream).startswith(b"event: now")
    revoke_key(site.keys_file, "admin")
    # One may have been on its way; a whole stream has thirty.
    assert len(list(stream)) <= 1


class Watched:
    """The last pictures of frames of one camera, by a clock that is moved by hand, and by `step`
    seconds with each look."""

    def __init__(self, engine: Engine) -> None:
        self.now, self.step = 100.0, 0.0
        self._recent, self._drawing = RecentFrames(), Pictures()
        self._recent.since(0)
        self.last = LastPictures(engine, self._recent, self._drawing, self._clock)
        self.admission = engine.admission
        self.close = self._drawing.close

    def _clock(self) -> float:
        self.now += self.step
        return self.now

    def answer(self) -> None:
        best = Prediction(0, "red", 0.9)
        answer = Answer("colors", 1, best, (best,), "pass", {"total": 0.005})
        self._recent.answered(FrameAnswered(1.5e9, "id", answer, Options(camera="gate"), RED))

    def shown(self) -> str:
        """The number of the frame whose picture is sent."""
        return self.last.get("gate").headers["X-Frame-Number"]


@pytest.fixture
def watched(colors: Path, tmp_path: Path) -> Iterator[Watched]:
    engine = Engine(Settings(models=str(colors), data=str(tmp_path), interpreters=1))
    engine.start()
    engine.await_model(60)
    watched = Watched(engine)
    yield watched
    watched.close()
    engine.stop()


def test_picture_is_drawn_once_for_all_who_watch(watched: Watched) -> None:
    """A newer frame is drawn when the drawing is no longer fresh."""
    watched.answer()
    first, again = watched.last.get("gate"), watched.last.get("gate")
    assert first.get_data() == again.get_data()
    assert first.headers["X-Verdict"] == "pass"
    watched.answer()
    assert watched.shown() == "1"
    watched.now += FRESH_S
    assert watched.shown() == "2"
    with pytest.raises(NotFoundError, match="no picture of st4"):
        watched.last.get("st4")


def test_drawing_rests_while_frames_are_worked_on(watched: Watched) -> None:
    watched.answer()
    watched.step = 1.0
    assert watched.shown() == "1"
    watched.answer()
    with watched.admission.idle_slot():
        assert watched.shown() == "1"
        watched.now += REST
        assert watched.shown() == "2"
    watched.answer()
    assert watched.shown() == "3", "no frame is worked on"
