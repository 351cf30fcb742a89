"""Every error has its own status and code in the one shape; the server goes on, memory flat."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, huge_png, picture
from server_process import LiveServer, live_server

URL = "/v1/recognize"
TEXT = b"This is not a picture but a text file.\n" * 20
JPEG = encode(picture(320, 240), "JPEG")
HUGE = huge_png()
# Every case: how it is asked (method, path, arguments), and the status and code it gets.
Case = tuple[str, str, dict[str, Any], int, str]
CASES: dict[str, Case] = {
    "text file": ("POST", URL, {"files": {"file": TEXT}}, 415, "UNSUPPORTED_IMAGE"),
    "raw text": ("POST", URL, {"data": TEXT}, 415, "UNSUPPORTED_IMAGE"),
    "empty file": ("POST", URL, {"files": {"file": ("a.jpg", b"")}}, 415, "UNSUPPORTED_IMAGE"),
    "truncated": ("POST", URL, {"files": {"file": JPEG[:3000]}}, 422, "UNDECODABLE_IMAGE"),
    "raw truncated": ("POST", URL, {"data": JPEG[:-2]}, 422, "UNDECODABLE_IMAGE"),
    "20,000 squared": ("POST", URL, {"files": {"file": HUGE}}, 413, "IMAGE_TOO_LARGE"),
    "17 MB": ("POST", URL, {"data": bytes(17_000_000)}, 413, "BODY_TOO_LARGE"),
    "17 MB file": ("POST", URL, {"files": {"file": bytes(17_000_000)}}, 413, "BODY_TOO_LARGE"),
    "no body": ("POST", URL, {}, 400, "MISSING_FIELD"),
    "no file": ("POST", URL, {"files": {"picture": JPEG}}, 400, "MISSING_FIELD"),
    "file without a name": ("POST", URL, {"files": {"file": (None, JPEG)}}, 400, "MISSING_FIELD"),
    "urlencoded": ("POST", URL, {"data": {"file": "frame.jpg"}}, 400, "MISSING_FIELD"),
    "wrong method": ("GET", URL, {}, 405, "METHOD_NOT_ALLOWED"),
    "wrong method with body": ("PUT", URL, {"data": JPEG}, 405, "METHOD_NOT_ALLOWED"),
    "unknown path": ("GET", "/v1/recognise", {}, 404, "NOT_FOUND"),
    "unknown path with body": ("POST", "/v1/recognise", {"data": JPEG}, 404, "NOT_FOUND"),
    "unknown model": (
        *("POST", URL, {"data": JPEG, "params": {"model": "nuts"}}),
        *(404, "MODEL_NOT_FOUND"),
    ),
    "unknown version": (
        *("POST", URL, {"data": JPEG, "params": {"version": 99}}),
        *(404, "MODEL_NOT_FOUND"),
    ),
    "unknown model's page": ("GET", "/v1/models/nuts", {}, 404, "MODEL_NOT_FOUND"),
    "malformed form": (
        "POST",
        URL,
        {"data": b"no boundary", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        *(400, "BAD_REQUEST"),
    ),
    "form without boundary": (
        "POST",
        URL,
        {"data": b"--x--", "headers": {"Content-Type": "multipart/form-data"}},
        *(400, "BAD_REQUEST"),
    ),
}
BAD_OPTIONS = [
    ("top_k", "0"),
    ("top_k", "1001"),
    ("top_k", "many"),
    ("top_k", "1.5"),
    ("threshold", "-0.1"),
    ("threshold", "1.1"),
    ("threshold", "nan"),
    ("threshold", "high"),
    ("version", "0"),
    ("version", "latest"),
    ("deadline_ms", "0"),
    ("deadline_ms", "soon"),
    ("deadline_ms", "inf"),
    ("camera", "c" * 129),
    ("captured_at", "yesterday"),
    ("captured_at", "2026-01-01T00:00:00"),
]


def assert_error(answer: requests.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("case", CASES)
def test_each_fault_has_its_status_and_code(server: LiveServer, sample: bytes, case: str) -> None:
    method, path, how, status, code = CASES[case]
    mine = uuid.uuid4().hex
    how = {**how, "headers": {**how.get("headers", {}), "X-Request-Id": mine}}
    answer = requests.request(method, server.url + path, timeout=60, **how)
    assert_error(answer, status, code)
    assert answer.headers["X-Request-Id"] == mine
    assert server.recognize(sample).status_code == 200


@pytest.mark.parametrize(("name", "value"), BAD_OPTIONS)
def test_a_bad_option_is_named(server: LiveServer, sample: bytes, name: str, value: str) -> None:
    answer = server.recognize(sample, **{name: value})
    assert_error(answer, 400, "INVALID_FIELD")
    assert name in answer.json()["error"]["message"]


def test_a_bad_option_in_a_form_is_named(server: LiveServer, sample: bytes) -> None:
    answer = requests.post(
        server.url + URL, data={"top_k": "no"}, files={"file": sample}, timeout=60
    )
    assert_error(answer, 400, "INVALID_FIELD")


def test_a_wrong_method_is_told_the_right_ones(server: LiveServer) -> None:
    answer = requests.get(server.url + URL, timeout=60)
    assert "POST" in answer.headers["Allow"]


def test_too_many_parts_are_refused(server: LiveServer) -> None:
    parts = {f"field{n}": str(n) for n in range(1200)}
    answer = requests.post(server.url + URL, data=parts, files={"file": JPEG}, timeout=60)
    assert_error(answer, 413, "BODY_TOO_LARGE")


def test_errors_are_counted_and_logged(colors: Path) -> None:
    # A server of its own: the other tests' errors may have used up the lines of this minute.
    with live_server(models=colors) as server:
        mine = uuid.uuid4().hex
        requests.post(server.url + URL, JPEG[:2000], headers={"X-Request-Id": mine}, timeout=60)
        refused = server.sample("lineside_frames_refused_total", reason="UNDECODABLE_IMAGE")
        assert refused == 1
        line = server.request_line(mine)
        assert (line["status"], line["code"]) == (422, "UNDECODABLE_IMAGE")


def test_memory_stays_flat_over_hundreds_of_bad_requests(server: LiveServer, sample: bytes) -> None:
    names = [name for name in CASES if not name.startswith("17 MB")]

    def all_cases() -> None:
        for name in names:
            method, path, how, status, _ = CASES[name]
            answer = session.request(method, server.url + path, timeout=60, **how)
            assert answer.status_code == status

    with requests.Session() as session:
        for case in ("17 MB", "17 MB file"):
            method, path, how, status, _ = CASES[case]
            assert session.request(method, server.url + path, **how).status_code == status
        for _ in range(10):
            all_cases()
        before = server.memory()
        for _ in range(20):
            all_cases()
        assert server.memory() - before < 15_000_000
    assert server.recognize(sample).status_code == 200
