"""SIGTERM: what was accepted is answered, and the process ends by itself."""

import http.client
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from images import encode, plain
from job_workers import await_that
from server_process import ROOT, LiveServer
from tiny_models import MakeModel, write_bundle

from server.process.drain import not_yet_accepted

GREEN = encode(plain((0, 255, 0)), "PNG")
PATH = "/v1/recognize"
# Answers before SIGTERM is sent, so that all clients are in full swing.
BEFORE = 60
# Seconds, well below those that the server gives clients to leave.
PATIENCE = 0.5


class Load:
    """Clients that send frame after frame until they are asked to leave or find the door closed.

    `ends` counts how each request ended: by status, or `lost ...` where it was sent whole or in
    part and not answered. What a client sent only PATIENCE after it had come, or had its last
    answer, is not counted where the server no longer took it: the machine had stopped the client.
    """

    def __init__(self, port: int, kept: int, fresh: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self.ends: Counter[str] = Counter()
        self.in_swing = threading.Event()
        # A client whose thread the machine holds up would else find the door closed at once.
        opened = [each for _ in range(kept) if (each := self._open())]
        assert len(opened) == kept
        self._threads = [threading.Thread(target=self._keep, args=(each,)) for each in opened]
        self._threads += [threading.Thread(target=self._renew) for _ in range(fresh)]
        for thread in self._threads:
            thread.start()

    def _count(self, end: str) -> None:
        with self._lock:
            self.ends[end] += 1
            if self.ends.total() >= BEFORE:
                self.in_swing.set()

    def _open(self) -> tuple[http.client.HTTPConnection, float] | None:
        """A new connection, and when it was asked for."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        began = time.monotonic()
        try:
            connection.connect()
        except OSError:
            return None
        return connection, began

    def _send(self, connection: http.client.HTTPConnection, since: float) -> float | None:
        """When the answer was there, if the connection may be used again; it is unused `since`."""
        sent = 0.0
        try:
            connection.request("POST", PATH, GREEN)
            sent = time.monotonic()
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            if (sent or time.monotonic()) - since < PATIENCE:
                self._count(f"lost: {error!r}")
            return None
        answered = time.monotonic()
        self._count(str(answer.status))
        return answered if answer.getheader("Connection") != "close" else None

    def _keep(self, opened: tuple[http.client.HTTPConnection, float]) -> None:
        connection = opened[0]
        since: float | None = opened[1]
        while since:
            since = self._send(connection, since)
        connection.close()

    def _renew(self) -> None:
        while opened := self._open():
            self._send(*opened)
            opened[0].close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()


@contextmanager
def serving(models: Path, **settings: object) -> Iterator[LiveServer]:
    server = LiveServer(models=models, **settings, traced=True)
    try:
        server.await_ready()
        yield server
    finally:
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def slow(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("slow")
    write_bundle(models / "slow" / "1", tiny_model("slow"))
    return models


@pytest.mark.parametrize(
    ("kept", "fresh"), [(8, 0), (0, 8), (6, 6), (24, 24)], ids=["kept", "fresh", "both", "flood"]
)
def test_under_load_nothing_accepted_goes_unanswered(
    slow: Path, tmp_path: Path, kept: int, fresh: int
) -> None:
    with serving(slow, data=tmp_path) as server:
        load = Load(server.port, kept, fresh)
        assert load.in_swing.wait(120)
        assert server.stop() == 0
        load.join()
        assert set(load.ends) <= {"200", "503"}, load.ends
        assert load.ends["200"] > 0
    with closing(sqlite3.connect(tmp_path / "journal.db")) as journal:
        rows = journal.execute("SELECT count(*) FROM answers WHERE status = 200")
        assert rows.fetchone() == (load.ends["200"],)


def test_sigterm_to_the_worker_alone_loses_nothing_either(slow: Path) -> None:
    """As systemd sends it: to every process of the service."""
    with serving(slow) as server:
        load = Load(server.port, 6, 6)
        assert load.in_swing.wait(120)
        os.kill(server.worker_pid(), signal.SIGTERM)
        assert server.stop() == 0
        load.join()
        assert set(load.ends) <= {"200", "503"}, load.ends


def test_a_body_that_is_still_coming_is_waited_for(slow: Path) -> None:
    with serving(slow, body_timeout=60) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GREEN)}\r\n\r\n"
            client.sendall(head.encode() + GREEN[:30])
            server.recognize(GREEN)
            server.process.send_signal(signal.SIGTERM)
            await_that(lambda: not is_open(server.port), "a closed door")
            client.sendall(GREEN[30:])
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"green"' in answer
        assert server.process.wait(60) == 0


class HeldUpError(Exception):
    """The machine held up a client for longer than a server waits for one."""


def ask_until_unready(
    probe: http.client.HTTPConnection, answered: float
) -> tuple[int, bytes, str | None]:
    """Status, body and Connection of the first answer of /readyz that is not 200. `answered` is
    when the last one came."""
    status = 200
    while status == 200:
        sent = 0.0
        try:
            probe.request("GET", "/readyz")
            sent = time.monotonic()
            answer = probe.getresponse()
            body, status = answer.read(), answer.status
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            assert (sent or time.monotonic()) - answered >= PATIENCE
            raise HeldUpError from error
        answered = time.monotonic()
    return status, body, answer.headers["Connection"]


def stop_before(models: Path) -> None:
    """Stops a server that has a body to wait for, and asks it whether it is ready."""
    with serving(models, body_timeout=60) as server:
        probe = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with (
            closing(probe),
            socket.create_connection(("127.0.0.1", server.port), timeout=60) as camera,
        ):
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GREEN)}\r\n\r\n"
            camera.sendall(head.encode() + GREEN[:30])
            probe.request("GET", "/readyz")
            assert probe.getresponse().read() == b'{"status":"ok"}'
            answered = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            status, body, connection = ask_until_unready(probe, answered)
            assert (status, b"NOT_READY" in body) == (503, True)
            assert connection == "close"
            camera.sendall(GREEN[30:])
        assert server.process.wait(60) == 0


def test_a_server_that_stops_is_not_ready(slow: Path) -> None:
    for _ in range(5):
        with suppress(HeldUpError):
            stop_before(slow)
            return
    pytest.fail("the machine held up every client")


def is_open(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            return True
    except OSError:
        return False


def test_idle_connections_keep_no_server_up(slow: Path) -> None:
    with serving(slow) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        server.recognize(GREEN)
        assert server.stop() == 0
        for client in idle:
            client.close()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_an_impatient_operator_harms_nothing(slow: Path, sig: signal.Signals) -> None:
    with serving(slow) as server:
        worker = server.worker_pid()
        for _ in range(5):
            with suppress(ProcessLookupError):
                os.kill(worker, sig)
            server.process.send_signal(sig)
        assert server.process.wait(60) == 0


def test_a_server_that_is_still_starting_stops_too(slow: Path) -> None:
    server = LiveServer(models=slow, traced=True)
    try:
        while not (
            Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
        ):
            assert server.process.poll() is None
        assert server.stop() == 0
    finally:
        server.stop(signal.SIGKILL)


def test_what_takes_longer_than_the_stop_timeout_is_ended(slow: Path) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with (
        serving(slow, stop_timeout=3, body_timeout=60) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as client,
    ):
        client.sendall(head.encode())
        server.recognize(GREEN)
        assert server.stop() == 1


def test_a_worker_does_not_outlive_its_parent(slow: Path) -> None:
    with serving(slow) as server:
        worker = os.pidfd_open(server.worker_pid())
        server.process.kill()
        assert select.select([worker], [], [], 60)[0]
        os.close(worker)


# A worker that comes to `stop_with_parent` only after its parent has ended.
# The kernel closes an ending process's pipes before it gives its children another parent, so
# `parent_process().join()` would return too soon; a pidfd becomes readable after both.
LATE = """
import os
import select
from multiprocessing import get_context
from server.process.drain import stop_with_parent

parent = os.pidfd_open(os.getpid())

def work():
    select.select([parent], [], [])
    stop_with_parent()
    print("serves", flush=True)

get_context("fork").Process(target=work).start()
os._exit(0)
"""


def test_worker_ends_if_parent_ended_before_it_was_up() -> None:
    """A worker whose parent ended before it was up ends too."""
    done = subprocess.run(
        [sys.executable, "-c", LATE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""
    assert "the server that started this worker has ended" in done.stderr


def test_no_connection_waits_if_kernel_reports_none() -> None:
    """If the kernel does not report waiting connections, none counts as waiting."""
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert not_yet_accepted(left) == 0
