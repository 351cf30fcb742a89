"""The example for nginx in front of a server, by a real nginx."""

import http.client
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from server_process import ROOT, LiveServer, free_port, live_server

CONF = ROOT / "deploy" / "nginx" / "lineside.conf"
GREEN = encode(plain((0, 255, 0)), "PNG")
CLIENT = "127.0.0.2"
MAIN = """daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    {paths}
    include {folder}/lineside.conf;
}}
"""
KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture(scope="module")
def proxied(
    colors: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveServer, int]]:
    """A server, and the port of an nginx in front of it."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed (Debian: apt install nginx-light)")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    with live_server(models=colors, trusted_proxies="127.0.0.1", traced=False) as server:
        text = CONF.read_text("utf-8").replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
        text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
        text = text.replace("    listen [::]:80;\n", "")
        (folder / "lineside.conf").write_text(text, "utf-8")
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in KINDS)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder, paths=paths), "utf-8")
        command = [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)]
        subprocess.run([*command, "-t"], capture_output=True, check=True)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                await_that(lambda: listens(port), "nginx listens")
                yield server, port
            finally:
                process.terminate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def client(port: int) -> http.client.HTTPConnection:
    """A connection from another address than nginx's own."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(CLIENT, 0))


def test_frame_through_nginx_has_the_client_address(proxied: tuple[LiveServer, int]) -> None:
    server, port = proxied
    with closing(client(port)) as connection:
        # What a client claims itself counts for nothing.
        connection.request("POST", "/v1/recognize", GREEN[:60], {"X-Forwarded-For": "1.2.3.4"})
        answer = connection.getresponse()
        assert answer.status == 422
        request_id = answer.getheader("X-Request-Id", "")
        answer.read()
        connection.request("POST", "/v1/recognize", GREEN)
        assert connection.getresponse().status == 200
    assert server.request_line(request_id)["address"] == CLIENT


def test_large_frame_is_refused_by_either(proxied: tuple[LiveServer, int]) -> None:
    _, port = proxied
    url = f"http://127.0.0.1:{port}/v1/recognize"
    refused = requests.post(url, bytes(16_500_000), timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "BODY_TOO_LARGE")
    assert requests.post(url, bytes(15_000_000), timeout=60).status_code == 415


def test_version_may_be_larger_than_a_frame(proxied: tuple[LiveServer, int]) -> None:
    _, port = proxied
    url = f"http://127.0.0.1:{port}/v1/models/colors/upload"
    headers = {"Content-Type": "application/x-tar"}
    answer = requests.post(url, bytes(20_000_000), headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VERSION_REFUSED")


def test_events_are_passed_on_at_once(proxied: tuple[LiveServer, int]) -> None:
    server, port = proxied
    with closing(client(port)) as connection:
        connection.request("GET", "/v1/events")
        answer = connection.getresponse()
        assert answer.status == 200
        assert answer.readline().startswith(b"retry: ")
        assert server.recognize(GREEN).status_code == 200
        assert any(line.startswith(b"data: ") and b"green" in line for line in answer)
