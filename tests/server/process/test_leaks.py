"""A server that has answered a thousand requests holds no more than before."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
from images import encode, plain
from server_process import LiveServer, live_server

GREEN = encode(plain((0, 255, 0)), "PNG")
CLIENTS = 4


def burst(server: LiveServer, count: int) -> None:
    """`count` requests over kept-alive and fresh connections, good and bad ones; all are closed
    at the end."""

    def ask(connection: HTTPConnection, *request: Any) -> int:
        connection.request(*request)
        with connection.getresponse() as answer:
            answer.read()
            return answer.status

    def client(number: int) -> None:
        address = ("127.0.0.1", server.port, 60)
        with closing(HTTPConnection(*address)) as kept:
            for turn in range(count // CLIENTS):
                body = GREEN if turn % 4 else GREEN[:50]
                with closing(HTTPConnection(*address)) as fresh:
                    used = kept if turn % 2 else fresh
                    expected = 200 if turn % 4 else 422
                    assert ask(used, "POST", "/v1/recognize", body) == expected
                with closing(HTTPConnection(*address)) as fresh:
                    assert ask(fresh, "GET", "/readyz") == 200

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))


def settled(server: LiveServer) -> tuple[int, int]:
    """Threads and descriptors, once the closed connections are gone from the server's side."""
    least = server.threads(), server.descriptors()
    for _ in range(20):
        requests.get(server.url + "/livez", timeout=60)
        least = min(least[0], server.threads()), min(least[1], server.descriptors())
    return least


def test_threads_descriptors_and_memory_stay(colors: Path) -> None:
    with live_server(models=colors) as server:
        burst(server, 400)
        threads, descriptors = settled(server)
        memory = server.memory()
        burst(server, 1000)
        after = settled(server)
        # Granian starts and ends its threads on demand, so that a few more or less mean nothing.
        assert after[0] - threads <= CLIENTS
        assert after[1] - descriptors <= CLIENTS
        assert server.memory() - memory < 5_000_000


def memory(server: LiveServer) -> int:
    """The least of some measures: a frame may be held for a moment after its answer."""
    pause, found = threading.Event(), [server.memory()]
    for _ in range(10):
        pause.wait(0.1)
        found.append(server.memory())
    return min(found)


@pytest.mark.parametrize(
    ("begin", "form"), [(b"no image at all ", False), (GREEN[:50], True)], ids=["raw", "form"]
)
def test_large_frames_that_fail_are_not_kept(colors: Path, begin: bytes, *, form: bool) -> None:
    frame = begin + bytes(5_000_000)

    def fail() -> None:
        body = {"files": {"file": frame}} if form else {"data": frame}
        answer = requests.post(server.url + "/v1/recognize", timeout=60, **body)
        assert answer.status_code in (415, 422)

    with live_server(models=colors) as server:
        for _ in range(5):
            fail()
        before = memory(server)
        for _ in range(40):
            fail()
        assert memory(server) - before < 25_000_000
