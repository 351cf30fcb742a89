"""The memory of all requests' bodies together, whoever sends them and however slowly."""

import http.client
import json
import select
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import LiveServer, live_server

from server.errors import OverloadedError
from server.http.body.timeout import PIECE_BYTES, BodyTimeoutMiddleware, hold
from server.http.wsgi import context_of

GREEN = encode(plain((0, 255, 0)), "PNG")
# Of a body whose end does not come.
SIZE, LACKING = 16_000_000, 1000
BUDGET_MB = 64
CROWD = 150


def send_most(server: LiveServer, head: str) -> socket.socket:
    """A client that has sent its body but for the end, or as much as the server takes in."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(f"POST /v1/recognize HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode())
    piece = bytes(1 << 20)
    client.settimeout(1)
    with suppress(OSError):
        for _ in range((SIZE - LACKING) // len(piece)):
            if "chunked" in head:
                client.sendall(b"100000\r\n" + piece + b"\r\n")
            else:
                client.sendall(piece)
    client.settimeout(60)
    return client


@pytest.mark.parametrize(
    "head",
    [
        f"Content-Type: image/jpeg\r\nContent-Length: {SIZE}",
        f"Content-Type: application/json\r\nContent-Length: {SIZE}",
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {SIZE}",
        "Content-Type: image/jpeg\r\nTransfer-Encoding: chunked",
    ],
    ids=["raw", "json", "form", "chunked"],
)
def test_withheld_bodies_take_no_more_than_their_budget(colors: Path, head: str) -> None:
    with (
        live_server(
            models=colors,
            body_timeout=60,
            bodies_mb=BUDGET_MB,
            log_repeats=0,
            stop_timeout=3,
        ) as server,
        ExitStack() as stack,
    ):
        assert server.recognize(GREEN).status_code == 200
        before = server.memory()
        done = threading.Event()
        peak = [0]

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], server.memory())

        watcher = stack.enter_context(ThreadPoolExecutor(1)).submit(watch)
        stack.callback(done.set)
        with ThreadPoolExecutor(CROWD) as pool:
            for client in pool.map(lambda _: send_most(server, head), range(CROWD)):
                stack.enter_context(client)
        for path in ("/livez", "/readyz", "/metrics"):
            assert requests.get(server.url + path, timeout=60).status_code == 200
        await_that(lambda: server.recognize(GREEN).status_code == 200, "a camera let in")
        done.set()
        watcher.result(60)
        # What the HTTP server itself holds of each connection is some 0.4 MB; a body in chunks is
        # collected in many small pieces, in its memory and in ours.
        times = 3.5 if "chunked" in head else 1.5
        assert peak[0] - before < (times * BUDGET_MB + CROWD * 0.6) * 1e6
        print(f"{(peak[0] - before) / 1e6:.0f} MB")


def test_refused_for_want_of_memory_is_told_so(colors: Path) -> None:
    """Once all is taken by bodies that have had no second yet, the next ones are told to wait."""
    with (
        live_server(models=colors, body_timeout=60, bodies_mb=SIZE / 1e6) as server,
        ExitStack() as stack,
    ):
        head = f"POST /v1/recognize HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n\r\n"
        clients = []
        for _ in range(4):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            clients.append(stack.enter_context(client))
            client.sendall(head.encode())
        told: Counter[int] = Counter()
        while sum(told.values()) < 3:
            for client in select.select(clients, [], [], 60)[0]:
                clients.remove(client)
                response = http.client.HTTPResponse(client)
                response.begin()
                told[response.status] += 1
                error = json.loads(response.read())["error"]
                if response.status == 503:
                    assert error["code"] == "OVERLOADED"
                    assert response.headers["Retry-After"]
        assert set(told) <= {408, 503}


class Granian:
    """What a WSGI environment needs to look as if the HTTP server had made it."""

    def response_bytes(self, *_: object) -> None:
        raise AssertionError("nothing is late here")


def environ_of(body: bytes, *, length: bool = True) -> dict[str, Any]:
    stream = BytesIO(body)
    made: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "wsgi.input": stream,
    }
    context_of(made).protocol = Granian()
    made |= {"CONTENT_LENGTH": str(len(body))} if length else {"HTTP_TRANSFER_ENCODING": "chunked"}
    return made


def served(bodies: BodyTimeoutMiddleware, environ: dict[str, Any]) -> Any:
    return bodies(environ, lambda *_: None)


@pytest.mark.parametrize("length", [True, False])
def test_bytes_are_given_back_at_the_requests_end(length: bool) -> None:
    def read(environ: dict[str, Any], _: object) -> list[bytes]:
        return [environ["wsgi.input"].read(10_000_000)]

    bodies = BodyTimeoutMiddleware(read, 60, 1_000_000)
    for _ in range(5):
        body = bytes(900_000)
        assert served(bodies, environ_of(body, length=length)) == [body]


def test_body_larger_than_all_is_read_alone() -> None:
    bodies = BodyTimeoutMiddleware(lambda environ, _: [environ["wsgi.input"].read(2000)], 60, 1000)
    assert served(bodies, environ_of(bytes(2000))) == [bytes(2000)]


@pytest.mark.parametrize("length", [True, False])
def test_what_two_requests_hold_is_added_up(length: bool) -> None:
    """Read or unpacked, while another request holds its body."""
    size = 4 * PIECE_BYTES
    going, go = threading.Event(), threading.Event()

    def keep(environ: dict[str, Any], _: object) -> list[bytes]:
        environ["wsgi.input"].read(size)
        going.set()
        assert go.wait(60)
        return []

    def unpack(environ: dict[str, Any], _: object) -> list[bytes]:
        environ["wsgi.input"].read(100)
        hold(environ, size - PIECE_BYTES)
        with pytest.raises(OverloadedError, match="bodies_mb"):
            hold(environ, 2 * PIECE_BYTES)
        return []

    bodies = BodyTimeoutMiddleware(
        lambda environ, start: environ["app"](environ, start), 60, 2 * size
    )
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(served, bodies, environ_of(bytes(size)) | {"app": keep})
        assert going.wait(60)
        for _ in range(3):
            assert served(bodies, environ_of(bytes(100), length=length) | {"app": unpack}) == []
        again = environ_of(bytes(size + 2 * PIECE_BYTES), length=length) | {
            "app": lambda environ, _: [environ["wsgi.input"].read(2 * size)]
        }
        with pytest.raises(OverloadedError):
            served(bodies, again)
        go.set()
        assert kept.result(60) == []


def test_body_in_pieces_counts_as_its_largest_piece() -> None:
    def take(environ: dict[str, Any], _: object) -> list[bytes]:
        return [bytes(len(environ["wsgi.input"].read(300))) for _ in range(20)]

    bodies = BodyTimeoutMiddleware(take, 60, 1000)
    assert len(b"".join(served(bodies, environ_of(bytes(6000))))) == 6000
