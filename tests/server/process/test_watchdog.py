"""systemd's watchdog is fed while a real server answers, and only then."""

import hashlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from server_process import ROOT, LiveServer, free_port, live_server
from tiny_models import change_manifest

from server.config.settings import Settings
from server.process.health import due_s, notify, watch

# Microseconds; the server says twice as often that it lives.
DUE_USEC = 200_000


class Manager:
    """Stands where systemd does: a datagram socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def next(self, timeout: float = 60) -> str:
        self._socket.settimeout(timeout)
        return self._socket.recv(4096).decode()

    def forget(self) -> None:
        """Reads what lies there already."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(traced=True) as running:
        yield running


@contextmanager
def watching(settings: Settings, manager: Manager) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(
        target=watch, args=(settings, str(manager.path), DUE_USEC / 1e6, ended)
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
        assert not thread.is_alive()


def test_systemd_is_told_ready_then_alive(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server under systemd reports that it is ready, and then that it lives."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", str(DUE_USEC))
    with live_server(traced=True):
        assert manager.next() == "READY=1"
        assert [manager.next() for _ in range(3)] == ["WATCHDOG=1"] * 3


def test_replacement_worker_feeds_the_watchdog_again(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was replaced feeds the watchdog again."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", str(DUE_USEC))
    with live_server(traced=True) as server:
        assert manager.next() == "READY=1"
        subprocess.run(["kill", "-KILL", str(server.worker_pid())], check=True)
        while manager.next() != "READY=1":
            pass
        assert manager.next() == "WATCHDOG=1"


def test_without_a_watchdog_it_only_says_that_it_is_ready(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    with live_server(traced=True) as server:
        assert manager.next() == "READY=1"
        # It would have been said with every answer.
        server.await_listening()
    with pytest.raises(BlockingIOError):
        manager.next(0)


def test_nothing_is_said_while_the_server_does_not_answer(
    server: LiveServer, manager: Manager
) -> None:
    with watching(Settings(port=server.port), manager):
        assert manager.next() == "READY=1"
        assert manager.next() == "WATCHDOG=1"
        worker = server.worker_pid()
        subprocess.run(["kill", "-STOP", str(worker)], check=True)
        try:
            manager.forget()
            # One answer may have come before of which nothing was said yet.
            with suppress(TimeoutError):
                manager.next(2)
            with pytest.raises(TimeoutError):
                manager.next(3 * DUE_USEC / 1e6)
        finally:
            subprocess.run(["kill", "-CONT", str(worker)], check=True)
        assert manager.next() == "WATCHDOG=1"


def test_a_manager_that_is_away_for_a_while_is_told_again(
    server: LiveServer, manager: Manager
) -> None:
    with watching(Settings(port=server.port), manager):
        assert manager.next() == "READY=1"
        manager.close()
        manager.path.unlink()
        fresh = Manager(manager.path)
        try:
            assert fresh.next() == "WATCHDOG=1"
        finally:
            fresh.close()


def test_server_on_all_addresses_is_asked_at_loopback(manager: Manager) -> None:
    """A server listening everywhere is asked at the loopback."""
    with (
        live_server(host="0.0.0.0", auth="off", traced=True) as server,
        watching(Settings(host="0.0.0.0", port=server.port), manager),
    ):
        assert manager.next() == "READY=1"


def test_the_abstract_namespace_is_written_with_an_at_sign() -> None:
    name = f"lineside-test-{free_port()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        notify("@" + name, "READY=1")
        assert listener.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_when_life_is_due(environ: dict[str, str], seconds: float | None) -> None:
    assert due_s(environ) == seconds


# `python -m server`, whose `health` waits longer than a server is held up by a machine.
PATIENT = """
import sys
from server.process import health as probing
from server.__main__ import main

probing.health.__defaults__ = (60.0,)
sys.exit(main())
"""


def health(port: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PATIENT, "health", "--port", str(port)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_health_of_a_server_that_is_ready(server: LiveServer) -> None:
    done = health(server.port)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"127.0.0.1:{server.port} is ready\n"


def test_health_where_nobody_listens() -> None:
    port = free_port()
    done = health(port)
    assert done.returncode == 1
    assert f"no answer from 127.0.0.1:{port}" in done.stderr


def test_health_of_a_server_without_a_model_that_may_serve(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models" / "iris", tmp_path / "iris")
    bundle = tmp_path / "iris" / "1"
    (bundle / "labels.txt").write_text("too\nfew\n", "utf-8")
    names = ("model.tflite", "labels.txt")
    digests = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in names}
    change_manifest(bundle, sha256=digests)
    server = LiveServer(models=tmp_path, traced=True)
    try:
        server.await_event("no version may serve")
        server.await_listening()
        done = health(server.port)
    finally:
        server.stop()
    assert done.returncode == 1
    assert f"127.0.0.1:{server.port} answers 503" in done.stderr
    assert "labels.txt has 2 labels" in done.stderr
