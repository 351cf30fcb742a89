"""Threads: each kind of waiting at its most, and probes are answered all the same."""

import hashlib
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from images import encode
from job_workers import await_that
from routes import PROBE_PATHS
from server_process import LiveServer, live_server
from tiny_models import MakeModel, change_manifest, write_bundle

from server.config import thread_budget
from server.config.settings import Settings
from server.http.body.timeout import MANY
from server.http.wsgi import Reserve, context_of

BUDGET = (
    thread_budget.READING_REQUESTS_MAX,
    thread_budget.SHARING_REQUESTS_MAX,
    thread_budget.LOADING_REQUESTS_MAX,
    thread_budget.FETCHING_REQUESTS_MAX,
    thread_budget.DRAWING_REQUESTS_MAX,
    thread_budget.EXPORTING_REQUESTS_MAX,
    thread_budget.SAMPLE_EXPORTS_MAX,
    thread_budget.EVENTS_REQUESTS_MAX,
    thread_budget.EXPLAINING_REQUESTS_MAX,
    thread_budget.COMPARING_REQUESTS_MAX,
    thread_budget.OTHER_REQUESTS_MAX,
)
# Bytes of a file that takes long to verify and no disk.
LONG = 60_000_000_000


def test_threads_are_enough_for_all_that_may_wait() -> None:
    settings = Settings()
    most = thread_budget.most_requests(settings.slots, settings.max_waiting)
    assert most == settings.slots + settings.max_waiting + sum(BUDGET)
    assert thread_budget.threads(settings.slots, settings.max_waiting) - most >= len(PROBE_PATHS)


class App:
    """A WSGI application whose requests wait for `go`; those of /stream answer in pieces."""

    def __init__(self) -> None:
        self.go, self.began = threading.Event(), threading.Semaphore(0)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        start("200 OK", [])
        if environ["PATH_INFO"] == "/stream":
            return iter([b"a", b"b"])
        if environ["PATH_INFO"] not in PROBE_PATHS:
            self.began.release()
            assert self.go.wait(60)
        return [b"well"]


def ask(app: Reserve, path: str, method: str = "GET") -> Any:
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method}
    return app(environ, lambda *_: None)


def refusing(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    start("503 SERVICE UNAVAILABLE", [])
    assert environ["wsgi.input"].read() == b""
    refused = context_of(environ).refused
    assert refused is not None
    return [refused.code.encode()]


def test_last_threads_are_for_probes() -> None:
    inner = App()
    app = Reserve(inner, refusing, most=3, probes=PROBE_PATHS)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, app, "/v1/recognize", "POST") for _ in range(3)]
        for _ in waiting:
            inner.began.acquire(timeout=60)
        assert ask(app, "/v1/recognize", "POST") == [b"OVERLOADED"]
        assert ask(app, "/livez", "POST") == [b"OVERLOADED"]
        assert all(ask(app, path) == [b"well"] for path in PROBE_PATHS)
        inner.go.set()
        assert all(answer.result(60) == [b"well"] for answer in waiting)
    assert ask(app, "/") == [b"well"]


def test_answer_in_pieces_counts_until_it_is_closed() -> None:
    app = Reserve(App(), refusing, most=1, probes=PROBE_PATHS)
    pieces = ask(app, "/stream")
    assert ask(app, "/stream") == [b"OVERLOADED"]
    assert b"".join(pieces) == b"ab"
    pieces.close()
    pieces.close()
    again = ask(app, "/stream")
    assert ask(app, "/stream") == [b"OVERLOADED"]
    again.close()


def test_request_that_fails_gives_its_place_back() -> None:
    def failing(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        raise RuntimeError

    app = Reserve(failing, refusing, most=1, probes=PROBE_PATHS)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            ask(app, "/")


@pytest.fixture
def models(tiny_model: MakeModel, tmp_path: Path) -> Path:
    """`colors`, and `slow`, which takes long to load."""
    write_bundle(tmp_path / "models" / "colors" / "1", tiny_model("colors"))
    slow = write_bundle(tmp_path / "models" / "slow" / "1", tiny_model("colors"))
    with (slow / "long.bin").open("wb") as file:
        file.truncate(LONG)
    known = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in slow.glob("[lm]*.t*")}
    change_manifest(slow, sha256={"long.bin": "0" * 64, **known})
    return tmp_path / "models"


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield int(listener.getsockname()[1])


def test_probes_are_answered_while_all_else_waits(
    models: Path, silent: int, tmp_path: Path
) -> None:
    """Slow bodies of frames, jobs and uploads; frames for a slot, for one another and for a model;
    images at a URL; changes of version; and webhooks, all at their most."""
    settings = {
        "model": "colors",
        "interpreters": 1,
        "wide_interpreter": False,
        "max_waiting": 8,
        "body_timeout": 600,
        "image_url_hosts": f"127.0.0.1:{silent}",
        "image_url_timeout": 60,
        "webhook_hosts": f"127.0.0.1:{silent}",
        "data": tmp_path / "data",
        "stop_timeout": 3,
    }
    webhook = f"http://127.0.0.1:{silent}/ended"
    green = encode(np.full((32, 32, 3), (0, 255, 0), np.uint8), "PNG")
    huge = encode(np.zeros((6900, 6900, 3), np.uint8), "PNG")
    done = threading.Event()
    with live_server(models=models, **settings) as server, ExitStack() as stack:
        url, before = server.url, server.threads()

        def keep(path: str, count: int, **how: Any) -> None:
            """Has `count` clients ask again and again."""

            def one() -> None:
                while not done.is_set():
                    with suppress(requests.RequestException):
                        requests.post(url + path, timeout=600, **how)

            for _ in range(count):
                thread = threading.Thread(target=one, daemon=True)
                thread.start()

        def has_ended(job: str) -> bool:
            status: str = requests.get(f"{url}/v1/jobs/{job}", timeout=60).json()["status"]
            return status == "succeeded"

        stack.callback(done.set)
        # Their ends are reported to a receiver that does not answer.
        for _ in range(8):
            taken = requests.post(f"{url}/v1/jobs", green, params={"webhook": webhook}, timeout=60)
            assert taken.status_code == 202, taken.text
        await_that(lambda: has_ended(taken.json()["job_id"]), "the last job's end")
        slow_paths = ("/v1/recognize", "/v1/jobs", "/v1/models/colors/upload")
        for _, path in zip(range(MANY), itertools.cycle(slow_paths), strict=False):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
            client.sendall(head.encode())
        forever = "deadline_ms=600000"
        keep(
            f"/v1/recognize?model=slow&{forever}",
            thread_budget.LOADING_REQUESTS_MAX,
            data=b"\xff\xd8",
        )
        fetched = {"image_url": f"http://127.0.0.1:{silent}/a.jpg", "deadline_ms": 600_000}
        keep("/v1/recognize", thread_budget.FETCHING_REQUESTS_MAX, json=fetched)
        keep(f"/v1/recognize?{forever}", 9, data=huge)
        sharing = thread_budget.SHARING_REQUESTS_MAX + 1
        keep(f"/api/recognize_cached?{forever}", sharing, files={"file": huge})
        # They wait for their turn to load.
        keep("/v1/models/slow/load", thread_budget.OTHER_REQUESTS_MAX)
        waiting = (
            MANY + thread_budget.LOADING_REQUESTS_MAX + thread_budget.FETCHING_REQUESTS_MAX + 9
        ) + thread_budget.OTHER_REQUESTS_MAX
        await_that(lambda: server.threads() - before >= waiting, "all of them to wait")
        for _ in range(4):
            for path in sorted(PROBE_PATHS):
                answer = requests.get(url + path, timeout=60)
                assert answer.status_code == 200, (path, answer.text)
        done.set()


def test_refusal_beyond_the_last_thread_has_the_usual_shape(colors_server: LiveServer) -> None:
    """By a query that is refused in the same way, before it is looked at."""
    answer = requests.post(colors_server.url + "/v1/recognize?" + "a" * 20_000, b"x", timeout=60)
    assert answer.json()["error"]["request_id"] == answer.headers["X-Request-Id"]
