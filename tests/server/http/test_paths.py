"""Paths however they are joined, and below whatever prefix a proxy serves them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests
from images import encode, plain
from job_workers import await_that
from routes import API
from server_process import LiveServer, live_server

from server.http.wsgi import VALUE_BYTES_MAX, normal

GREEN = encode(plain((0, 255, 0)), "JPEG")
PREFIX = "/line4/cameras"


@pytest.mark.parametrize(
    ("path", "same"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/v1/recognize", "/v1/recognize"),
        ("/v1/recognize/", "/v1/recognize"),
        ("//v1///recognize//", "/v1/recognize"),
        ("/v1/models/a:predict/", "/v1/models/a:predict"),
        ("", ""),
    ],
)
def test_path_has_single_slashes(path: str, same: str) -> None:
    assert normal(path) == same


def ways(path: str) -> list[str]:
    return [path + "/", "/" + path, path.replace("/", "//") + "//"]


@pytest.mark.parametrize("path", sorted({route.path for route in API}))
def test_slashes_change_no_route(clients: LiveServer, path: str) -> None:
    filled = path.format(
        name="corners", version=1, label="stable", file="red.jpg", sample="x", job="x"
    )
    for method in sorted({o.method for o in API if o.path == path}):
        if method == "POST" and path.endswith(("/load", "/activate", "/rollback")):
            continue  # these change what the other tests see
        found = set()
        for way in (filled, *ways(filled)):
            # The body is not read, since that of /v1/events goes on for a minute.
            with requests.request(
                method,
                clients.url + way,
                data=b"",
                timeout=60,
                allow_redirects=path == "/docs",
                stream=True,
            ) as answer:
                found.add((answer.status_code, answer.headers["Content-Type"]))
        assert len(found) == 1, (path, found)


def test_frame_is_counted_however_it_is_addressed(colors: Path) -> None:
    """A frame is answered and counted, however its path is written."""
    with live_server(models=colors) as server:
        for way in ways("/v1/recognize"):
            for files in ({}, {"file": GREEN}):
                headers = {} if files else {"Content-Type": "image/jpeg"}
                answer = requests.post(
                    server.url + way,
                    None if files else GREEN,
                    files=files,
                    headers=headers,
                    timeout=60,
                    allow_redirects=False,
                )
                assert answer.status_code == 200

        def counted() -> bool:
            labels = {"route": "/v1/recognize", "status": "200"}
            return server.sample("lineside_requests_total", **labels) == 6

        await_that(counted, "all counted under the one route")


def test_docs_page_finds_its_files_below_itself(clients: LiveServer) -> None:
    for way in ways("/docs"):
        answer = requests.get(clients.url + way, timeout=60)
        style = urljoin(answer.url, "console/style.css")
        assert requests.get(style, timeout=60).headers["Content-Type"].startswith("text/css")


def test_encoded_slash_is_a_slash(clients: LiveServer) -> None:
    answer = requests.get(clients.url + "/v1/models/corners%2Fnothing", timeout=60)
    assert answer.status_code == 404


def test_query_that_is_longer_than_any_is_refused(clients: LiveServer) -> None:
    for path in ("/v1/recognize", "/v1/journal", "/classify", "/livez"):
        query = "&".join(["camera=%41"] * (VALUE_BYTES_MAX // 8))
        answer = requests.request(
            "GET" if path in ("/v1/journal", "/livez") else "POST",
            f"{clients.url}{path}?{query}",
            data=GREEN,
            headers={"Content-Type": "image/jpeg"},
            timeout=60,
        )
        assert answer.status_code == 400
        assert "query string" in answer.text


@pytest.mark.parametrize(
    "name", ["Accept", "Content-Type", "Cookie", "Authorization", "Cache-Control", "X-Any"]
)
def test_header_that_is_longer_than_any_is_refused(clients: LiveServer, name: str) -> None:
    for method, path in (("POST", "/v1/recognize"), ("GET", "/v1/journal"), ("POST", "/predict")):
        answer = requests.request(
            method, clients.url + path, data=GREEN, headers={name: "a/b," * 50_000}, timeout=60
        )
        assert answer.status_code == 400
        assert f"the header {name}" in answer.text


class Stripping(BaseHTTPRequestHandler):
    """A reverse proxy that serves a server's routes below PREFIX."""

    protocol_version = "HTTP/1.1"
    target, names_prefix = "", True

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        if not self.path.startswith(PREFIX + "/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = dict(self.headers)
        if self.names_prefix:
            headers["X-Forwarded-Prefix"] = PREFIX
        answer = requests.request(
            self.command,
            self.target + self.path.removeprefix(PREFIX),
            data=body,
            headers=headers,
            timeout=60,
            allow_redirects=False,
        )
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Location"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def do_DELETE(self) -> None:
        self._pass_on()


@contextmanager
def proxied(server: LiveServer, *, names_prefix: bool) -> Iterator[str]:
    kind = type("Proxy", (Stripping,), {"target": server.url, "names_prefix": names_prefix})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}{PREFIX}"
        proxy.shutdown()


@pytest.mark.parametrize("by", ["header", "setting"])
def test_addresses_are_right_behind_a_prefix(client_models: Path, by: str) -> None:
    settings = {"url_prefix": PREFIX} if by == "setting" else {}
    with (
        live_server(models=client_models, model="corners", **settings) as server,
        proxied(server, names_prefix=by == "header") as url,
    ):
        for slash in ("", "/"):
            answer = requests.post(url + "/v1/jobs" + slash, files={"file": GREEN}, timeout=60)
            assert answer.status_code == 202
            for given in (answer.headers["Location"], answer.json()["status_url"]):
                job = requests.get(urljoin(answer.url, given), timeout=60)
                assert job.json()["job_id"] == answer.json()["job_id"]
                again = requests.get(urljoin(job.url, job.json()["status_url"]), timeout=60)
                assert again.status_code == 200
        page = requests.get(url + "/v1/jobs", timeout=60)
        first = page.json()["jobs"][0]["status_url"]
        assert requests.get(urljoin(page.url, first), timeout=60).status_code == 200
        cancelled = requests.delete(urljoin(page.url, first), timeout=60)
        assert cancelled.status_code in (200, 409)
        for path, how in (
            ("/predict", {"files": {"image": GREEN}}),
            ("/start-task", {"json": {"input": [5.1, 3.5, 1.4, 0.2]}}),
        ):
            started = requests.post(url + path, timeout=60, **how)
            task = urljoin(started.url, started.json()["status_url"])
            assert requests.get(task, timeout=60).json()["task_id"] == started.json()["task_id"]

        described = requests.get(url + "/openapi.json", timeout=60)
        base = urljoin(described.url, described.json()["servers"][0]["url"])
        assert requests.get(base.rstrip("/") + "/v1/models", timeout=60).status_code == 200
        for page_path in ("/", "/docs", "/docs/"):
            page = requests.get(url + page_path, timeout=60)
            assert page.status_code == 200
            script = urljoin(page.url, "console/icon.svg")
            assert requests.get(script, timeout=60).status_code == 200


@pytest.mark.parametrize(
    "prefix",
    ["//evil.example", "/a//b", "http://evil/", "/a b", "/%2e", "/a?b", "a", "/" + "a" * 99],
)
def test_prefix_that_is_no_plain_path_is_ignored(clients: LiveServer, prefix: str) -> None:
    answer = requests.post(
        clients.url + "/v1/jobs",
        files={"file": GREEN},
        headers={"X-Forwarded-Prefix": prefix},
        timeout=60,
    )
    assert answer.headers["Location"] == f"/v1/jobs/{answer.json()['job_id']}"
