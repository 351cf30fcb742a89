"""The one line that each request has in the log."""

import json
import logging
from collections.abc import Iterator

import pytest
from flask import Flask

from server.http.errors import register_errors
from server.http.request_log import RequestLog, observe_requests
from server.http.wsgi import current
from server.observe import logs
from server.observe.logs import LogThrottle
from server.observe.metrics import Metrics


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    logger = logging.getLogger(logs.LOGGER)
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers[:] = propagate, handlers


@pytest.mark.parametrize("level", ["info", "error"])
def test_a_failure_of_ours_has_one_line_with_its_traceback(
    capfd: pytest.CaptureFixture[str], level: str
) -> None:
    app, metrics = Flask("failing"), Metrics()
    repeats = LogThrottle(2)
    observe_requests(app, RequestLog(metrics, repeats, [metrics.cameras.refused]))
    register_errors(app)

    @app.get("/fails")
    def fails() -> str:
        current().is_frame = True
        raise ZeroDivisionError("the cause")

    listener = logs.start(level, "json")
    client = app.test_client()
    answers = [client.get("/fails?camera=a", headers={"X-Request-Id": f"r{n}"}) for n in range(3)]
    repeats.summarize()
    listener.stop()

    assert [answer.status_code for answer in answers] == [500] * 3
    assert answers[0].json is not None
    assert "the cause" not in answers[0].json["error"]["message"]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["event"], line["request_id"]) for line in lines if "request_id" in line] == [
        ("request failed", "r0"),
        ("request failed", "r1"),
    ]
    assert (lines[0]["level"], lines[0]["status"], lines[0]["code"]) == ("error", 500, "INTERNAL")
    assert "ZeroDivisionError: the cause" in lines[0]["traceback"]
    assert b'lineside_camera_frames_total{camera="a",result="failed"} 3.0' in metrics.render()
