"""HTTP as cameras and PLCs speak it: kept-alive connections, chunks, Expect, slow and rude ends."""

import http.client
import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from images import encode, plain
from server_process import LiveServer, live_server

GREEN = encode(plain((0, 255, 0)), "PNG")
PATH = "/v1/recognize"


@pytest.fixture
def connection(colors_server: LiveServer) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection("127.0.0.1", colors_server.port, timeout=30)
    made.connect()
    yield made
    made.close()


def label(answer: http.client.HTTPResponse) -> str:
    body = json.loads(answer.read())
    assert answer.status == 200, body
    return str(body["predictions"][0]["label"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", PATH, b"text", 415),
        ("POST", PATH, GREEN[:60], 422),
        ("POST", PATH, b"", 400),
        ("POST", PATH, bytes(17_000_000), 413),
        ("POST", "/nowhere", GREEN, 404),
        ("PUT", PATH, GREEN, 405),
        ("GET", "/v1/models/nuts", None, 404),
    ],
)
def test_a_connection_goes_on_after_an_error(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
    status: int,
) -> None:
    same = connection.sock
    connection.request(method, path, body)
    answer = connection.getresponse()
    assert answer.status == status
    answer.read()
    connection.request("POST", PATH, GREEN)
    assert label(connection.getresponse()) == "green"
    assert connection.sock is same


def test_many_frames_on_one_connection(connection: http.client.HTTPConnection) -> None:
    same = connection.sock
    for _ in range(50):
        connection.request("POST", PATH, GREEN)
        assert label(connection.getresponse()) == "green"
    assert connection.sock is same


def test_a_chunked_body(connection: http.client.HTTPConnection) -> None:
    pieces = (GREEN[i : i + 20] for i in range(0, len(GREEN), 20))
    connection.request("POST", PATH, pieces, encode_chunked=True)
    assert label(connection.getresponse()) == "green"
    connection.request("POST", PATH, GREEN)
    assert label(connection.getresponse()) == "green"


def test_a_chunked_form(colors_server: LiveServer) -> None:
    request = requests.Request("POST", colors_server.url + PATH, files={"file": GREEN}).prepare()
    body = request.body
    assert isinstance(body, bytes)
    answer = requests.post(
        colors_server.url + PATH,
        iter([body[:50], body[50:]]),
        headers={"Content-Type": request.headers["Content-Type"]},
        timeout=30,
    )
    assert answer.json()["predictions"][0]["label"] == "green"


def test_a_chunked_body_is_limited_too(colors_server: LiveServer) -> None:
    answer = requests.post(colors_server.url + PATH, iter([bytes(1_000_000)] * 17), timeout=30)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "BODY_TOO_LARGE"


def test_expect_100_continue(colors_server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", colors_server.port), timeout=30) as client:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GREEN)}\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        client.sendall(head.encode())
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(GREEN)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"green"' in answer


def test_http_1_0(colors_server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", colors_server.port), timeout=30) as client:
        head = f"POST {PATH} HTTP/1.0\r\nContent-Length: {len(GREEN)}\r\n\r\n"
        client.sendall(head.encode() + GREEN)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert b" 200 " in answer.split(b"\r\n")[0]
    assert b'"green"' in answer


def test_a_client_that_hangs_up_or_dawdles_harms_no_other(
    colors_server: LiveServer, connection: http.client.HTTPConnection
) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GREEN)}\r\n\r\n".encode()
    address = ("127.0.0.1", colors_server.port)
    slow = [socket.create_connection(address, timeout=60) for _ in range(40)]
    for client in slow:
        client.sendall(head + GREEN[:20])
    connection.request("POST", PATH, GREEN)
    assert label(connection.getresponse()) == "green"
    for client in slow[1:]:
        client.close()
    slow[0].sendall(GREEN[20:])
    answer = slow[0].recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
    slow[0].close()
    connection.request("POST", PATH, GREEN)
    assert label(connection.getresponse()) == "green"


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"],
    ids=["tls", "cut off", "version"],
)
def test_what_is_no_http_harms_no_other(
    colors_server: LiveServer, connection: http.client.HTTPConnection, noise: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", colors_server.port), timeout=30) as client:
        client.sendall(noise)
        client.shutdown(socket.SHUT_WR)
        client.recv(4096)
    connection.request("POST", PATH, GREEN)
    assert label(connection.getresponse()) == "green"


def test_idle_connections_keep_nobody_out(colors: Path) -> None:
    idle = 1100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * idle:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * idle)), hard))
    with live_server(models=colors) as server, ExitStack() as stack:
        for _ in range(idle):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        assert requests.get(server.url + "/livez", timeout=60).status_code == 200
        assert server.recognize(GREEN).status_code == 200
