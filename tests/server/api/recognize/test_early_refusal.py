"""The gate before Flask: whom it refuses while frames wait, and whom it leaves to Flask."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from images import encode, plain
from job_workers import await_that
from urllib3 import PoolManager
from urllib3.util import Retry
from werkzeug.serving import make_server
from werkzeug.test import Client, TestResponse

from server.api.recognize.caching import Caching
from server.api.recognize.fast_path import FastPath
from server.api.recognize.service import RecognitionService
from server.app import create_app
from server.config.settings import Settings
from server.engine import Engine
from server.http.access.auth import Authenticator
from server.http.request_log import RequestLog
from server.line.products import Products
from server.observe.logs import LogThrottle
from server.recognition.admission import Admission
from server.recognition.answers import FrameRefused
from server.recorders import open_cache
from server.store.keys import add_key
from server.system.background import make_task_queue

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RED = encode(plain((255, 0, 0)), "PNG")


@contextmanager
def crowd() -> Iterator[Admission]:
    """An admission whose only slot is taken and whose only place to wait too."""
    admission, begun, end = Admission(1, 1), threading.Event(), threading.Event()

    def work(waited: float) -> None:
        begun.set()
        assert end.wait(60)

    with ThreadPoolExecutor(2) as threads:
        try:
            frames = [threads.submit(admission.run, work, math.inf)]
            assert begun.wait(60)
            frames.append(threads.submit(admission.run, work, math.inf))
            await_that(lambda: admission.crowded, "a frame that waits")
            yield admission
        finally:
            end.set()
        for frame in frames:
            frame.result(60)


class Crowded:
    """An application behind a gate that can let no frame more in; `refused` are those told of."""

    def __init__(self, models: Path, folder: Path, admission: Admission) -> None:
        self.keys_file = folder / "keys.jsonl"
        settings = Settings(
            models=str(models),
            keys_file=str(self.keys_file),
            data=str(folder / "data"),
            interpreters=1,
            wide_interpreter=False,
        )
        engine = Engine(settings)
        app = create_app(settings, engine=engine)
        self._reported: list[FrameRefused] = []
        self._afterwards = make_task_queue("afterwards")
        recognizing = RecognitionService(
            engine.store,
            engine.metrics,
            settings,
            caching=Caching(open_cache(app, settings), engine.metrics),
            afterwards=self._afterwards,
            products=Products((), engine.store, folder),
        )
        self.app = FastPath(
            app.wsgi_app,
            recognizing,
            admission,
            settings,
            Authenticator(settings),
            RequestLog(engine.metrics, LogThrottle(0), [self._reported.append]),
            self._afterwards,
            unguarded=["/readyz"],
        )
        self._client = Client(self.app)

    @property
    def refused(self) -> list[FrameRefused]:
        """The frames that were refused for want of room, as they were reported."""
        self._afterwards.flush(60)
        return [each for each in self._reported if each.status == 503]

    def await_model(self) -> None:
        await_that(lambda: self._client.get("/readyz").status_code == 200, "a loaded model")

    def post(
        self, address: str = "127.0.0.1", query: str = "camera=st4", **headers: str
    ) -> TestResponse:
        return self._client.post(
            f"/v1/recognize?{query}",
            data=RED,
            headers={"Content-Type": "image/png", **headers},
            environ_overrides={"REMOTE_ADDR": address},
        )


@pytest.fixture
def crowded(colors: Path, tmp_path: Path) -> Iterator[Crowded]:
    with crowd() as admission:
        yield Crowded(colors, tmp_path, admission)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_another_sites_page_is_told_so_however_many_wait(
    crowded: Crowded, headers: dict[str, str]
) -> None:
    crowded.await_model()
    assert crowded.post().status_code == 503
    assert crowded.post(**headers).status_code == 403


def test_who_may_not_come_in_is_told_so_however_many_wait(crowded: Crowded) -> None:
    may = add_key(crowded.keys_file, "line", ["recognize"], now=NOW)
    may_not = add_key(crowded.keys_file, "prometheus", ["metrics"], now=NOW)
    for headers, status in (
        ({}, 401),
        ({"X-API-Key": may[:-4] + "AAAA"}, 401),
        ({"Authorization": f"Basic {may}"}, 401),
        ({"X-API-Key": may_not}, 403),
    ):
        assert crowded.post(**headers).status_code == status
    assert crowded.refused == []
    answer = crowded.post(Authorization=f"Bearer {may}")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert [(each.camera, each.status) for each in crowded.refused] == [("st4", 503)]


def test_open_access_refuses_early_on_loopback_only(crowded: Crowded) -> None:
    """Without keys, only callers of this machine are refused early for want of room."""
    assert crowded.post("192.0.2.7").status_code == 401
    assert crowded.refused == []
    assert crowded.post().status_code == 503
    assert len(crowded.refused) == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("camera=st4&deadline_ms=-5", 400),
        ("camera=st4&deadline_ms=nan", 400),
        ("camera=st4&top_k=0", 400),
        ("camera=st4&captured_at=yesterday", 400),
        ("camera=st4&kamera=st5", 400),
        ("camera=st4&deadline=200", 400),
        ("camera=ls_0123456789abcdef_0123456789abcdef0123456789abcdef", 400),
        ("camera=st4&model=nope", 404),
        ("camera=st4&version=99", 404),
    ],
)
def test_what_is_malformed_is_told_so_however_many_wait(
    crowded: Crowded, query: str, status: int
) -> None:
    crowded.await_model()
    assert crowded.post(query=query).status_code == status
    assert crowded.refused == []


def test_the_first_of_two_values_counts_as_when_idle(crowded: Crowded) -> None:
    assert (
        crowded.post(query="camera=st4&camera=st5&deadline_ms=&deadline_ms=-5").status_code == 503
    )
    assert [each.camera for each in crowded.refused] == ["st4"]


def test_standard_client_sends_a_refused_frame_again(crowded: Crowded) -> None:
    """As Retry-After allows, unlike a stale one."""
    retry = Retry(1, allowed_methods=None, raise_on_status=False)
    server = make_server("127.0.0.1", 0, crowded.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with PoolManager(retries=retry) as pool:
            url = f"http://127.0.0.1:{server.server_port}/v1/recognize?camera=st4"
            headers = {"Content-Type": "image/png"}
            crowded.await_model()
            answer = pool.request("POST", url, body=RED, headers=headers, timeout=60)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert "X-Should-Retry" not in answer.headers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(crowded.refused) == 2
