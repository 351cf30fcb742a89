"""Requests that are decided by their first lines: answered at once, though their bodies don't come.

Every server here gives a body ten minutes: a client that waited for that would fail.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import LiveServer, live_server

from server.store.keys import add_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GREEN = encode(plain((0, 255, 0)), "PNG")
LENGTHS = ("Content-Length: 100000", "Transfer-Encoding: chunked")


def begin(
    server: LiveServer, method: str, path: str, *head: str, host: str = "localhost"
) -> socket.socket:
    """A client that sends the first lines and the start of a body, and no more."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    lines = "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {host}", *head))
    start = "5\r\nabc" if LENGTHS[1] in head else "abc"
    client.sendall(f"{lines}\r\n\r\n{start}".encode())
    return client


def answer(client: socket.socket) -> tuple[int, str]:
    """The status and the error's code that the client is told."""
    response = http.client.HTTPResponse(client)
    response.begin()
    body = json.loads(response.read())["error"]
    assert response.headers["Connection"] == "close"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return response.status, body["code"] if isinstance(body, dict) else ""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A keys file, and the key in it, which has only the right `metrics`."""
    file = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    return file, add_key(file, "m", ["metrics"], now=NOW)


@pytest.fixture(scope="module")
def closed(colors: Path, keys: tuple[Path, str]) -> Iterator[LiveServer]:
    with live_server(models=colors, keys_file=keys[0], body_timeout=600) as server:
        yield server


@pytest.fixture(scope="module")
def unguarded(colors: Path) -> Iterator[LiveServer]:
    with live_server(models=colors, body_timeout=600) as server:
        yield server


ROUTES = [
    ("POST", "/v1/recognize"),
    ("POST", "/v1/recognize/batch"),
    ("POST", "/v1/jobs"),
    ("POST", "/v1/models/colors/upload"),
    ("POST", "/v1/models/colors/activate"),
    ("POST", "/v1/samples/000000001-0123456789abcdef/label"),
    ("POST", "/classify"),
    ("POST", "/predict"),
    ("POST", "/v2/models/colors/infer"),
    ("POST", "/v1/models/colors:predict"),
    ("DELETE", "/v1/jobs/x"),
]
KINDS = ("image/jpeg", "application/json", "multipart/form-data; boundary=x")


def of_each_route(
    server: LiveServer, *head: str, host: str = "localhost"
) -> dict[tuple[str, str], int]:
    """The statuses that clients of all ROUTES are told, who begin together."""
    with ExitStack() as stack:
        clients = {
            (method, path): stack.enter_context(begin(server, method, path, *head, host=host))
            for method, path in ROUTES
        }
        return {route: answer(client)[0] for route, client in clients.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_no_key_is_told_at_once(closed: LiveServer, length: str, kind: str) -> None:
    assert of_each_route(closed, length, f"Content-Type: {kind}") == dict.fromkeys(ROUTES, 401)


def test_a_lesser_right_is_told_at_once(closed: LiveServer, keys: tuple[Path, str]) -> None:
    key = f"X-API-Key: {keys[1]}"
    assert of_each_route(closed, LENGTHS[0], key) == dict.fromkeys(ROUTES, 403)


@pytest.mark.parametrize(
    ("method", "path", "head", "status", "code"),
    [
        ("POST", "/nowhere", LENGTHS[0], 404, "NOT_FOUND"),
        ("POST", "/nowhere", LENGTHS[1], 404, "NOT_FOUND"),
        ("PUT", "/v1/recognize", LENGTHS[0], 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/models", LENGTHS[0], 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/recognize", "Content-Length: 99000000", 413, "BODY_TOO_LARGE"),
    ],
)
def test_a_decision_by_the_first_lines_is_told_at_once(
    unguarded: LiveServer, method: str, path: str, head: str, status: int, code: str
) -> None:
    with begin(unguarded, method, path, head) as client:
        assert answer(client) == (status, code)


@pytest.mark.parametrize(
    ("host", "header"),
    [
        ("evil.example", "Accept: */*"),
        ("localhost", "Origin: https://evil.example"),
        ("localhost", "Sec-Fetch-Site: cross-site"),
    ],
)
def test_another_sites_page_is_told_at_once(unguarded: LiveServer, host: str, header: str) -> None:
    found = of_each_route(unguarded, LENGTHS[0], header, host=host)
    assert found == dict.fromkeys(ROUTES, 403)


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("/v1/models/colors/upload", "Content-Type: image/jpeg"),
        ("/v1/recognize", "Content-Type: application/json\r\nContent-Encoding: br"),
    ],
)
def test_a_type_that_is_not_read_is_told_at_once(
    unguarded: LiveServer, path: str, header: str
) -> None:
    with begin(unguarded, "POST", path, LENGTHS[0], header) as client:
        assert answer(client) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_rate_is_told_at_once(colors: Path) -> None:
    with live_server(models=colors, body_timeout=600, rate_per_address="1/day") as server:
        requests.get(server.url + "/v1/models", timeout=60)
        for path in ("/v1/recognize", "/nowhere"):
            with begin(server, "POST", path, LENGTHS[0]) as client:
                assert answer(client) == (429, "RATE_LIMITED")


def test_client_refused_while_it_sends_reads_the_answer(unguarded: LiveServer) -> None:
    """And is not cut off in the middle of its body."""

    def sent_and_read() -> bool:
        with begin(unguarded, "POST", "/nowhere", "Content-Length: 8000003") as client:
            told = client.recv(20)
            with suppress(ConnectionError):  # stalled for as long as the server drains
                client.sendall(bytes(8_000_000))
                return told.startswith(b"HTTP/1.1 404")
            return False

    await_that(sent_and_read, "a body that is drained")


def test_many_refused_at_once_keep_no_camera_out(closed: LiveServer, unguarded: LiveServer) -> None:
    clients = [begin(closed, "POST", "/v1/recognize", LENGTHS[0]) for _ in range(150)]
    assert requests.get(closed.url + "/livez", timeout=60).status_code == 200
    assert {answer(client)[0] for client in clients} <= {401, 503}
    for client in clients:
        client.close()
    clients = [begin(unguarded, "POST", "/nowhere", LENGTHS[0]) for _ in range(150)]
    await_that(lambda: unguarded.recognize(GREEN).status_code == 200, "a camera let in")
    for client in clients:
        client.close()
