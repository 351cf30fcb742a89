"""Real workers and a real Redis, for tests of jobs."""

import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from server_process import ROOT, LiveServer, free_port

DEADLINE = 60.0


def await_that(done: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """What `done` returns, once that is true; fails after `seconds`."""
    pause, until, length = threading.Event(), time.monotonic() + seconds, 0.01
    while not (found := done()):
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        # Most of `done` ask a server, which takes the processor from what they wait for.
        pause.wait(length)
        length = min(0.1, 1.5 * length)
    return found


@pytest.fixture
def departed() -> None:
    """No model that an earlier test of this process left is still on its way out, to be told of
    among the lines that this test reads."""
    for thread in threading.enumerate():
        if thread.name == "model-release":
            thread.join(30)
            assert not thread.is_alive(), "an earlier test still holds a model"


def patiently(send: Callable[[], requests.Response]) -> requests.Response:
    """The answer of a route of jobs, asked again where the disk keeps their table busy for so long
    that the server refuses."""

    def look() -> list[requests.Response]:
        answer = send()
        busy = answer.status_code == 503 and answer.json()["error"]["code"] == "JOBS_UNAVAILABLE"
        return [] if busy else [answer]  # a response by itself counts as false where it is an error

    found: list[requests.Response] = await_that(look, "an answer from a table that is not busy")
    return found[0]


def tell(server: LiveServer, job: str) -> dict[str, Any]:
    """The job as the server tells it."""
    answer = patiently(lambda: requests.get(f"{server.url}/v1/jobs/{job}", timeout=60))
    found: dict[str, Any] = answer.json()
    return found


def cancel(server: LiveServer, job: str) -> dict[str, Any]:
    """The job as the server tells it when it has been cancelled."""
    answer = patiently(lambda: requests.delete(f"{server.url}/v1/jobs/{job}", timeout=60))
    found: dict[str, Any] = answer.json()
    return found


def settled(server: LiveServer, job: str) -> dict[str, Any]:
    """The job as the server tells it, once it has ended."""

    def look() -> dict[str, Any] | None:
        answer = tell(server, job)
        return None if answer["status"] in ("pending", "running") else answer

    found: dict[str, Any] = await_that(look, f"the end of job {job}")
    return found


def submit(server: LiveServer, data: bytes, **params: Any) -> str:
    """One raw frame to /v1/jobs; the job's id."""
    url = f"{server.url}/v1/jobs"
    answer = patiently(lambda: requests.post(url, data, params=params, timeout=60))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


@contextmanager
def serving(server: HTTPServer) -> Iterator[str]:
    """Has `server` answer for the block; its HOST:PORT."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    with server:
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def count_jobs(data: Path, state: str) -> int:
    """Jobs in `state` by the table in the folder `data`, whether or not a server runs."""
    with sqlite3.connect(f"file:{data}/jobs.db?mode=ro", uri=True, timeout=60) as db:
        found = db.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,)).fetchone()
    db.close()
    return int(found[0])


def children(pid: int) -> list[int]:
    """The processes that `pid` started, from any of its threads."""
    found: list[int] = []
    for task in tasks(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


def tasks(pid: int) -> list[Path]:
    """The threads of a process in /proc, each of which may end at any moment."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


def thread_names(pid: int) -> list[str]:
    """The names of a process's threads."""
    found = []
    for task in tasks(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append((task / "comm").read_text().strip())
    return found


def job_workers(server: LiveServer) -> list[int]:
    """The workers that the server itself started."""
    return [pid for web in children(server.process.pid) for pid in children(web)]


def end(pid: int) -> None:
    """kill -9, and not back before it is gone."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], DEADLINE)[0]
        os.close(handle)


class LiveWorker:
    """`python -m server worker` with the given settings, until `stop`. `lines` is its log."""

    def __init__(self, **settings: object) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
        env |= {"LINESIDE_" + k.upper(): str(v) for k, v in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server", "worker"],
            cwd=ROOT,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            with suppress(ValueError):
                self.lines.append(json.loads(text))

    def await_ready(self) -> None:
        """Returns once it takes frames."""
        await_that(
            lambda: any(line["event"] == "worker ready" for line in self.lines), "a ready worker"
        )

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Sends `sig`, waits, returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


class RedisServer:
    """Debian's redis-server on a free port, with the append-only file on, until `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Returns once it answers; what it held before is there again."""
        self.process = subprocess.Popen(
            [
                *("redis-server", "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--appendonly", "yes", "--save", "", "--dir", str(self.folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        await_that(self._answers, "an answer from redis-server")

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                client.sendall(b"PING\r\n")
                return client.recv(100).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Ends it."""
        self.process.send_signal(sig)
        self.process.wait(60)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A Redis for the block; skips where Debian's redis-server is absent."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.stop()
