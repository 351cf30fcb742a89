"""Clients whose bodies do not come: told so, and in nobody's way."""

import http.client
import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from requests.adapters import HTTPAdapter
from server_process import LiveServer, live_server

from server.config.thread_budget import READING_REQUESTS_MAX
from server.http.body.timeout import GRACE_S, MANY

GREEN = encode(plain((0, 255, 0)), "PNG")
PATH = "/v1/recognize"
# More than any number of threads that the server has.
CROWD = 250


@pytest.fixture(scope="module")
def server(colors: object) -> Iterator[LiveServer]:
    with live_server(
        models=colors, body_timeout=1, max_waiting=8, log_repeats=0, traced=True
    ) as made:
        yield made


def begin(
    server: LiveServer, path: str = PATH, head: str = "Content-Length: 100000"
) -> socket.socket:
    """A client that sends the start of a body and no more."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\nabc".encode())
    return client


def answer(client: socket.socket) -> tuple[http.client.HTTPResponse, bytes]:
    """What the client is told, once the server has closed its connection."""
    response = http.client.HTTPResponse(client)
    response.begin()
    body = response.read()
    assert client.recv(1) == b""
    return response, body


BEGINNINGS = [
    (PATH, "Content-Length: 100000"),
    (PATH, "Content-Length: 100000\r\nContent-Type: image/jpeg"),
    (PATH, "Content-Length: 100000\r\nContent-Type: application/json"),
    (PATH, "Transfer-Encoding: chunked\r\n\r\n5"),
    ("/v1/jobs", "Content-Length: 100000\r\nContent-Type: multipart/form-data; boundary=x"),
]


def test_a_body_that_does_not_come_ends_in_408(server: LiveServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(begin(server, *each)) for each in BEGINNINGS]
        answers = [answer(client) for client in clients]
    for response, body in answers:
        told = json.loads(body)["error"]
        assert (response.status, told["code"]) == (408, "REQUEST_TIMEOUT")
        assert response.headers["Connection"] == "close"
        assert response.headers["X-Request-Id"] == told["request_id"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_it_is_logged_under_the_id_that_the_client_is_told(server: LiveServer) -> None:
    with begin(server) as client:
        response, _ = answer(client)
    line = server.request_line(response.headers["X-Request-Id"])
    assert (line["status"], line["code"]) == (408, "REQUEST_TIMEOUT")


def test_another_protocols_shape(server: LiveServer) -> None:
    with begin(server, "/v2/models/colors/infer") as client:
        _, body = answer(client)
    assert set(json.loads(body)) == {"error"}
    assert isinstance(json.loads(body)["error"], str)


def test_a_body_that_comes_a_byte_at_a_time_is_late_too(server: LiveServer) -> None:
    with begin(server) as client:
        client.settimeout(0.05)
        said = b""
        while not said:
            client.sendall(b"x")
            try:
                said = client.recv(100)
            except TimeoutError:
                continue
    assert said.startswith(b"HTTP/1.1 408 ")


def test_slow_clients_keep_neither_probes_nor_cameras_out(colors: object) -> None:
    longest = 4

    def came_together() -> bool:
        """Whether all clients began before the first was late; a later one may take its place."""
        with (
            live_server(models=colors, body_timeout=longest, max_waiting=8, traced=True) as server,
            ExitStack() as stack,
        ):
            began = time.monotonic()
            slow = [stack.enter_context(begin(server)) for _ in range(CROWD)]
            for path in ("/livez", "/readyz"):
                assert requests.get(server.url + path, timeout=60).status_code == 200
            told = [answer(client)[0] for client in slow]
            rounds = int((time.monotonic() - began) / longest)
            await_that(lambda: server.recognize(GREEN).status_code == 200, "a camera let in")
            refused = server.sample("lineside_frames_refused_total", reason="OVERLOADED")
        assert all(r.headers["Retry-After"] for r in told if r.status == 503)
        statuses = Counter(response.status for response in told)
        assert set(statuses) <= {408, 503}
        # Each that is late was waited for as long as it may be.
        assert 0 < statuses[408] <= READING_REQUESTS_MAX * rounds
        assert refused >= statuses[503]
        return rounds == 1 and statuses[503] > 0

    await_that(came_together, "a crowd at once")


def test_other_answers_are_not_taken_for_theirs(server: LiveServer) -> None:
    """Each of 100 late bodies ends, and no connection on which pages of a like length are read."""
    done, read = threading.Event(), [0, 0, 0]

    def keep_reading(number: int) -> None:
        with requests.Session() as session:
            session.mount("http://", HTTPAdapter(max_retries=0))
            while not done.is_set():
                assert session.get(server.url + "/", timeout=60).status_code == 200
                read[number] += 1

    with ThreadPoolExecutor(len(read)) as others:
        readers = [others.submit(keep_reading, number) for number in range(len(read))]
        try:
            for _ in range(4):
                with ExitStack() as stack:
                    slow = [stack.enter_context(begin(server)) for _ in range(25)]
                    assert {answer(client)[0].status for client in slow} == {408}
        finally:
            done.set()
        for reader in readers:
            reader.result(60)
    assert min(read) > 0


def test_a_good_camera_takes_the_place_of_the_slowest(colors: object) -> None:
    def came_together() -> bool:
        """Whether the last client was told of a want of room before the first had had its time."""
        with (
            live_server(models=colors, body_timeout=600, max_waiting=8, traced=True) as server,
            ExitStack() as stack,
        ):
            began = time.monotonic()
            slow = [stack.enter_context(begin(server)) for _ in range(MANY + 1)]
            told = select.select(slow, [], [], 60)[0]
            if time.monotonic() - began >= GRACE_S:
                return False
            (refused,) = told
            assert answer(refused)[0].status == 503
            slow.remove(refused)
            await_that(lambda: server.recognize(GREEN).status_code == 200, "a camera let in")
            told = select.select(slow, [], [], 60)[0]
            assert 408 in {answer(client)[0].status for client in told}
            return True

    await_that(came_together, "a crowd at once")


def test_stalled_body_does_not_keep_the_server_up(colors: object) -> None:
    """As long as stop_timeout, whose end would be told by the exit code."""
    with live_server(models=colors, body_timeout=1, traced=True) as server, begin(server) as client:
        server.await_listening()
        assert server.stop() == 0
        assert answer(client)[0].status == 408


@pytest.fixture(scope="module")
def patient(colors: object) -> Iterator[LiveServer]:
    """A server that waits longer for a body than any test."""
    with live_server(models=colors, body_timeout=600, traced=True) as made:
        yield made


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("head", ["Content-Length: 9", "Transfer-Encoding: chunked"])
def test_a_body_that_no_route_reads_is_not_waited_for(
    patient: LiveServer, method: str, head: str
) -> None:
    with ExitStack() as stack:
        request = f"{method} / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode()
        for _ in range(MANY + 1):
            client = socket.create_connection(("127.0.0.1", patient.port), timeout=60)
            stack.enter_context(client)
            client.sendall(request)
            response = http.client.HTTPResponse(client, method=method)
            response.begin()
            assert response.status in (200, 204)
            response.read()
            assert client.recv(1) == b""
        assert patient.recognize(GREEN).status_code == 200
