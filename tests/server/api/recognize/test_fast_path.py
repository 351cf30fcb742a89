"""The way past Flask answers as Flask's route does, and leaves to Flask what is not its own.

The server lets pages of one origin in, and a request that names an origin goes to Flask: so the
same request is sent with and without.
"""

import base64
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from server_process import LiveServer, live_server

from server.store.keys import add_key

ORIGIN = "http://line.example"
RED = encode(plain((255, 0, 0)))
RAW = {"Content-Type": "image/jpeg"}
FILE = {"file": ("a.jpg", RED, "image/jpeg")}


@pytest.fixture(scope="module")
def both_ways(colors: Path) -> Iterator[LiveServer]:
    with live_server(
        models=colors, cors_origins=ORIGIN, max_body_mb=0.02, max_pixels=100_000, max_form_parts=4
    ) as server:
        yield server


def told(answer: requests.Response) -> tuple[int, Any, dict[str, str]]:
    """Status, body without what differs from one request to the next, and headers."""
    body = answer.json()
    error = body.get("error", {})
    for part in (body, error):
        part.pop("request_id", None)
    if "message" in error:
        error["message"] = re.sub(r"was [\d.]+ s old", "was some s old", error["message"])
    body["timing_ms"] = sorted(body.get("timing_ms", {}))
    if body.get("captured_age_ms") is not None:
        body["captured_age_ms"] = "some"
    left_out = ("x-request-id", "content-length", "vary", "date")
    return (
        answer.status_code,
        body,
        {
            name.lower(): value
            for name, value in answer.headers.items()
            if name.lower() not in left_out and not name.lower().startswith("access-control")
        },
    )


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (200, {"data": RED, "headers": RAW}),
        (200, {"data": RED, "headers": {"Content-Type": "application/octet-stream"}}),
        (200, {"data": RED, "headers": RAW, "params": {"top_k": 1, "camera": "st4", "part": "ü"}}),
        (200, {"data": RED, "headers": RAW, "params": {"captured_at": "now"}}),
        (200, {"chunked": True, "headers": RAW}),
        (200, {"files": FILE}),
        (200, {"files": {"image": RED}, "data": {"top_k": "1", "camera": "st4"}}),
        (200, {"files": FILE, "data": {"top_k": "2"}, "params": {"top_k": "1"}}),
        (200, {"files": {"image_base64": (None, base64.b64encode(RED).decode())}}),
        (400, {"data": b"", "headers": RAW}),
        (400, {"data": RED, "headers": RAW, "params": {"top_k": "many"}}),
        (400, {"files": {"other": RED}}),
        (400, {"data": b"no form", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}),
        (404, {"data": RED, "headers": RAW, "params": {"model": "absent"}}),
        (413, {"data": bytes(30_000), "headers": RAW}),
        (413, {"data": encode(plain((1, 2, 3), 400, 300)), "headers": RAW}),
        (413, {"files": FILE, "data": dict.fromkeys("abcd", "x")}),
        (415, {"data": b"no image", "headers": RAW}),
        (422, {"data": RED[:300], "headers": RAW}),
        (503, {"data": RED, "headers": RAW, "params": {"captured_at": 1, "deadline_ms": 5}}),
    ],
)
def test_both_ways_answer_alike(both_ways: LiveServer, status: int, how: dict[str, Any]) -> None:
    """Status, body, headers and counts."""
    url, answers = both_ways.url + "/v1/recognize", []
    headers, chunked = how.get("headers", {}), how.get("chunked", False)
    rest = {name: value for name, value in how.items() if name not in ("headers", "chunked")}
    if how.get("params") == {"captured_at": "now"}:
        rest["params"] = {"captured_at": time.time(), "deadline_ms": 600_000}
    for origin in ({}, {"Origin": ORIGIN}):
        if chunked:
            rest["data"] = iter([RED[:100], RED[100:]])
        before = both_ways.sample(
            "lineside_requests_total", route="/v1/recognize", status=str(status)
        )
        answer = requests.post(url, **rest, headers=headers | origin, timeout=60)
        answers.append(told(answer))
        after = both_ways.sample(
            "lineside_requests_total", route="/v1/recognize", status=str(status)
        )
        assert after == before + 1
        assert "Access-Control-Allow-Origin" in answer.headers or not origin
    assert answers[0] == answers[1]
    assert answers[0][0] == status


def test_a_failed_frame_keeps_its_request_id(both_ways: LiveServer) -> None:
    answer = requests.post(
        both_ways.url + "/v1/recognize", b"x", headers={**RAW, "X-Request-Id": "mine"}, timeout=60
    )
    assert answer.headers["X-Request-Id"] == answer.json()["error"]["request_id"] == "mine"


def test_a_key_without_the_right_is_told_so(colors: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    now = datetime.now(UTC)
    may = add_key(file, "line", ("recognize",), now=now)
    may_not = add_key(file, "prometheus", ("metrics",), now=now)
    with live_server(models=colors, keys_file=file) as server:

        def post(key: str | None) -> int:
            headers = RAW | ({"X-API-Key": key} if key else {})
            url = server.url + "/v1/recognize"
            return requests.post(url, RED, headers=headers, timeout=60).status_code

        assert [post(may), post(may_not), post(None), post("ls_wrong")] == [200, 403, 401, 401]
    named = [line.get("caller") for line in server.lines if line["event"] == "request"]
    assert "line" in named
