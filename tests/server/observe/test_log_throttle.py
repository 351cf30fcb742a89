"""Like log lines: a few a minute, then how many were left out."""

import logging
import threading
import uuid
from pathlib import Path

import pytest
import requests
from images import encode, plain
from server_process import live_server
from tiny_models import MakeModel, write_bundle

from server.observe.logs import THROTTLE_WINDOW_S, LogThrottle

SUMMARY = "requests without a line of their own"


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    """Keeps the fields of each line."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.fields.append(getattr(record, "fields", {}))


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture(autouse=True)
def logged(own_logger: logging.Logger, lines: Lines) -> None:
    own_logger.handlers[:], own_logger.propagate = [lines], False
    own_logger.setLevel(logging.INFO)


def test_each_kind_has_its_lines_a_minute(lines: Lines) -> None:
    clock = Clock()
    repeats = LogThrottle(2, clock)
    passed = [repeats.passes("UNDECODABLE_IMAGE", "/v1/recognize") for _ in range(5)]
    assert passed == [True, True, False, False, False]
    assert repeats.passes("UNDECODABLE_IMAGE", "/classify")
    assert repeats.passes("INTERNAL", "/v1/recognize")
    clock.now += THROTTLE_WINDOW_S - 1
    assert not repeats.passes("UNDECODABLE_IMAGE", "/v1/recognize")
    clock.now += 1
    assert repeats.passes("UNDECODABLE_IMAGE", "/v1/recognize")
    repeats.summarize()
    assert lines.fields == [{"code": "UNDECODABLE_IMAGE", "route": "/v1/recognize", "requests": 4}]
    repeats.summarize()
    assert len(lines.fields) == 1


def test_no_limit_leaves_nothing_out(lines: Lines) -> None:
    repeats = LogThrottle(0)
    assert all(repeats.passes("INTERNAL", "/") for _ in range(1000))
    repeats.summarize()
    assert lines.fields == []


def test_a_timer_runs_only_while_there_is_something_to_tell() -> None:
    before = set(threading.enumerate())

    def timers() -> list[threading.Thread]:
        new = [thread for thread in threading.enumerate() if thread not in before]
        return [thread for thread in new if isinstance(thread, threading.Timer)]

    repeats = LogThrottle(1)
    assert repeats.passes("INTERNAL", "/")
    assert timers() == []
    for _ in range(3):
        repeats.omit("OVERLOADED", "/v1/recognize")
    (timer,) = timers()
    assert timer.daemon
    repeats.summarize()
    timer.join(60)
    assert timers() == []


def test_a_server_that_meets_one_error_often_logs_it_seldom(colors: Path) -> None:
    with live_server(models=colors, log_repeats=3) as server:
        with requests.Session() as session:
            for _ in range(20):
                session.post(server.url + "/v1/recognize", b"text", timeout=60)
                session.get(server.url + "/nowhere/" + uuid.uuid4().hex, timeout=60)
        assert server.stop() == 0
    kinds = [line["code"] for line in server.lines if line["event"] == "request"]
    assert kinds == ["UNSUPPORTED_IMAGE", "NOT_FOUND"] * 3
    told = [
        (line["code"], line["route"], line["requests"])
        for line in server.lines
        if line["event"] == SUMMARY
    ]
    assert told == [("UNSUPPORTED_IMAGE", "/v1/recognize", 17), ("NOT_FOUND", "unmatched", 17)]


def test_what_the_gate_refuses_is_told_of_at_the_end(tiny_model: MakeModel, tmp_path: Path) -> None:
    write_bundle(tmp_path / "slow" / "1", tiny_model("slow"))
    frame = encode(plain((0, 255, 0)), "PNG")
    statuses: list[int] = []
    with live_server(models=tmp_path, interpreters=1, max_waiting=1, frames_at_once=1) as server:

        def work() -> None:
            for _ in range(15):
                statuses.append(server.recognize(frame, camera="fast").status_code)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = server.sample("lineside_frames_refused_total", reason="OVERLOADED")
        for_camera = server.sample(
            "lineside_camera_frames_total", camera="fast", result="refused"
        ) + server.sample("lineside_camera_frames_total", camera="other", result="refused")
        assert server.stop() == 0
    assert set(statuses) == {200, 503}
    assert for_camera == statuses.count(503)
    own = [line for line in server.lines if line.get("code") == "OVERLOADED" and "path" in line]
    told = [line for line in server.lines if line["event"] == SUMMARY]
    told = [line for line in told if line["code"] == "OVERLOADED"]
    assert len(told) == 1
    assert len(own) + told[0]["requests"] == refused
