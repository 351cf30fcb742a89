"""Log lines: JSON with the request's id, or text for a person; nothing is lost at the end."""

import json
import logging
import os
import re
import sys
import threading
import uuid
from datetime import datetime
from pathlib import Path

import pytest
import requests
from images import encode, plain
from server_process import LiveServer, live_server

from server.observe.logs import LOGGER, WAITING_LINES_MAX, JsonFormatter, TextFormatter, start

GREEN = encode(plain((0, 255, 0)), "PNG")


@pytest.fixture(autouse=True)
def own_stop(own_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that gives no line up on a busy machine."""
    monkeypatch.setattr("server.observe.logs.STOP_TIMEOUT_S", 60.0)


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("lineside", logging.INFO, "", 0, message, None, None)
    made.fields = fields
    return made


def test_a_json_line_holds_the_fields_on_one_line() -> None:
    text = JsonFormatter().format(record("request", path='/a"\n', ms=1.5))
    assert "\n" not in text
    line = json.loads(text)
    assert (line["event"], line["level"], line["path"], line["ms"]) == (
        *("request", "info", '/a"\n', 1.5),
    )
    assert datetime.fromisoformat(line["time"]).tzinfo is not None


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_goes_into_the_line(capfd: pytest.CaptureFixture[str], form: str) -> None:
    listener = start("info", form)
    try:
        raise ValueError("why")
    except ValueError as error:
        extra = {"fields": {"request_id": "r1"}}
        logging.getLogger(LOGGER).error("request failed", exc_info=error, extra=extra)
    listener.stop()
    text = capfd.readouterr().err
    if form == "json":
        line = json.loads(text)
        assert (line["event"], line["request_id"]) == ("request failed", "r1")
        text = line["traceback"]
    assert "ValueError: why" in text
    assert "test_logs.py" in text


def test_lines_below_the_level_are_not_written(capfd: pytest.CaptureFixture[str]) -> None:
    listener = start("warning", "json")
    logging.getLogger(LOGGER).info("told to nobody")
    logging.getLogger(LOGGER).warning("told")
    listener.stop()
    assert json.loads(capfd.readouterr().err)["event"] == "told"


def test_a_stop_waits_for_a_reader_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is full, since nobody reads the pipe, when the stop comes."""
    end, start_of = os.pipe()
    with os.fdopen(end) as reading, os.fdopen(start_of, "w") as pipe:
        monkeypatch.setattr(sys, "stderr", pipe)
        listener = start("info", "json")
        number = 0
        while listener.waiting < WAITING_LINES_MAX:
            logging.getLogger(LOGGER).info("line", extra={"fields": {"number": number}})
            number += 1

        def stop() -> None:
            try:
                listener.stop()
            finally:
                pipe.close()

        stopping = threading.Thread(target=stop)
        stopping.start()
        written = [json.loads(line)["number"] for line in reading]
        stopping.join()
    assert written == list(range(number))


def test_a_text_line_is_for_a_person() -> None:
    text = TextFormatter().format(record("model loaded", model="parts/1"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d info    model loaded model=parts/1", text)


def test_a_text_line_stays_one_line() -> None:
    text = TextFormatter().format(record("request", path="/x\n21:00:00 error forged\x1b[31m"))
    assert "\n" not in text
    assert "\x1b" not in text
    assert r"path='/x\n21:00:00 error forged\x1b[31m'" in text


def test_every_frame_has_a_line_with_its_id(colors_server: LiveServer) -> None:
    mine = uuid.uuid4().hex
    requests.post(
        colors_server.url + "/v1/recognize", GREEN, headers={"X-Request-Id": mine}, timeout=60
    )
    line = colors_server.request_line(mine)
    assert (line["event"], line["level"], line["method"], line["path"], line["status"]) == (
        *("request", "info", "POST", "/v1/recognize", 200),
    )
    assert (line["model"], line["label"]) == ("colors/1", "green")
    assert line["ms"] > 0


def test_all_lines_are_json_and_none_is_lost(colors: Path) -> None:
    ids = [uuid.uuid4().hex for _ in range(60)]
    with live_server(models=colors) as server:
        with requests.Session() as session:
            for mine in ids:
                session.post(
                    server.url + "/v1/recognize", GREEN, headers={"X-Request-Id": mine}, timeout=60
                )
            session.get(server.url + "/readyz", timeout=60)
        assert server.stop() == 0
    logged = [line["request_id"] for line in server.lines if line["event"] == "request"]
    assert logged == ids
    strange = [line["text"] for line in server.lines if line["event"] == "stderr"]
    assert [text for text in strange if "XNNPACK delegate" not in text] == []


def test_the_level_and_the_format_can_be_set(colors: Path) -> None:
    server = LiveServer(models=colors, log_format="text", log_level="debug")
    try:
        line = server.await_event("stderr")
        while "model loaded" not in line["text"]:
            line = server.await_event("stderr")
        server.await_listening()
        while "path=/livez" not in line["text"]:
            line = server.await_event("stderr")
        assert "debug" in line["text"]
    finally:
        server.stop()
