"""A worker that a signal ends is replaced, and the port outlives it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from images import encode, plain
from job_workers import await_that, children, end
from server_process import ROOT, LiveServer
from tiny_models import MakeModel, write_bundle

from server.system.handover import Crash, Handover

GREEN = encode(plain((0, 255, 0)), "PNG")
REQUEST = (
    b"POST /v1/recognize HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n" % len(GREEN)
) + GREEN


@contextmanager
def serving(models: Path) -> Iterator[LiveServer]:
    server = LiveServer(models=models, traced=True)
    try:
        server.await_ready()
        yield server
    finally:
        server.stop()


def said(server: LiveServer) -> list[str]:
    return [line["text"] for line in server.lines if "the worker was ended" in line.get("text", "")]


def kill_worker(server: LiveServer, number: signal.Signals = signal.SIGSEGV) -> None:
    """Returns once the supervisor has seen it."""
    before = len(said(server))
    os.kill(server.worker_pid(), number)
    await_that(lambda: len(said(server)) > before, "the supervisor's word")


def test_worker_is_replaced_however_often_it_dies(colors: Path) -> None:
    with serving(colors) as server:
        for _ in range(4):
            await_that(lambda: children(server.process.pid), "a worker")
            kill_worker(server)
        server.await_listening()
        assert server.recognize(GREEN).status_code == 200
        starts = [text.removeprefix("lineside: the worker was ended by ") for text in said(server)]
        assert starts == [
            "SIGSEGV; starting another",
            "SIGSEGV; starting another in 0.5 s",
            "SIGSEGV; starting another in 1 s",
            "SIGSEGV; starting another in 2 s",
        ]


def test_connections_wait_while_there_is_no_worker(colors: Path) -> None:
    with serving(colors) as server:
        kill_worker(server)
        await_that(lambda: children(server.process.pid), "the first replacement")
        kill_worker(server)
        # The next worker comes only after a pause; nobody but the supervisor holds the port.
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(REQUEST)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")


def test_replacement_takes_frames_once_it_is_ready(tiny_model: MakeModel, tmp_path: Path) -> None:
    """The port's queue holds frames until the model of the next worker is loaded."""
    write_bundle(tmp_path / "slow" / "1", tiny_model("slow"))
    server = LiveServer(models=tmp_path, traced=True)
    try:
        server.await_ready()
        for _ in range(3):
            kill_worker(server)
            assert server.recognize(GREEN).status_code == 200
    finally:
        server.stop()


def test_stop_during_the_pause_ends_the_server(colors: Path) -> None:
    with serving(colors) as server:
        for _ in range(3):
            await_that(lambda: children(server.process.pid), "a worker")
            kill_worker(server)
        assert server.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=60)


def test_port_is_closed_once_a_stop_is_asked_for(colors: Path) -> None:
    with serving(colors) as server:
        kill_worker(server)
        server.await_listening()
        assert server.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port), timeout=60)


# A supervisor to which orphans come, as to a container's first process (prctl(2),
# PR_SET_CHILD_SUBREAPER), and whose first worker dies and leaves a child that ends later. The
# second worker waits until that child is no process any more, not even a zombie.
ORPHANS = """
import ctypes, os, pathlib, resource, signal, sys, time
from server.system.handover import Handover
from server.process.supervisor import supervise

ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
handover = Handover()
note = pathlib.Path(sys.argv[1])

def serve():
    if handover.count:
        pid = int(note.read_text())
        while pathlib.Path(f"/proc/{pid}").exists():
            time.sleep(0.01)
        return 7
    pid = os.fork()
    if pid == 0:
        while os.getppid() == parent:
            time.sleep(0.01)
        os._exit(0)
    note.write_text(str(pid))
    os.abort()

parent = None
def work():
    global parent
    parent = os.getpid()
    return serve()

sys.exit(supervise(work, handover))
"""


def test_orphans_are_reaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHANS, str(tmp_path / "pid")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr


def test_handover_gives_the_last_descriptor_of_a_name() -> None:
    handover = Handover()
    with closing(socket.socket()) as first, closing(socket.socket()) as last:
        handover.leave("port", first.fileno())
        handover.leave("port", last.fileno())
        assert handover.inherited("port") is None
        handover.collect()
        number = handover.inherited("port")
        assert number is not None
        assert os.path.samestat(os.fstat(number), os.fstat(last.fileno()))
        assert not os.get_inheritable(number)
    handover.close()
    assert handover.inherited("port") is None


def test_handover_counts_all_crashes_and_remembers_the_last() -> None:
    handover = Handover()
    for number in range(100):
        handover.crashed(Crash(float(number), "SIGSEGV", number))
    handover.close()
    assert handover.count == 100
    assert handover.crashes[-1].pid == 99
    assert len(handover.crashes) < 100


def test_worker_ends_with_its_supervisor(colors: Path) -> None:
    server = LiveServer(models=colors, traced=True)
    try:
        server.await_ready()
        kill_worker(server)
        server.await_listening()
        worker = server.worker_pid()
        end(server.process.pid)
        await_that(lambda: not Path(f"/proc/{worker}").exists(), "the worker's end")
    finally:
        server.stop(signal.SIGKILL)
