"""A real server process on a free port, for tests."""

import itertools
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"


def _ports() -> Iterator[int]:
    """The ports of this worker of pytest-xdist, in turn, from a random one on.

    All are below those that Linux gives to outgoing connections, since a server takes its port only
    some time after it was drawn, and gives it back while it is started anew."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    range_ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    ports = range(10_000 + worker, int(range_[0]), workers)
    start = random.randrange(len(ports))
    return itertools.cycle([*ports[start:], *ports[:start]])


PORTS = _ports()


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, and which no other test gets for a long time."""
    for port in PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def environ_without_coverage() -> dict[str, str]:
    """The environment for programs of others, for processes that are killed, and for commands that
    other tests run too, also without our settings. Coverage would trace each line and learn nothing
    new about the product."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE_", "LINESIDE_"))}


def run_script(*command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run Python with the arguments `command` from the project's folder, such as a script of it, to
    its end, whatever its exit code. timeout: seconds."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ_without_coverage(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class LiveServer:
    """`python -m server`, or Python with the arguments `command`, with the given settings
    (lower-case names), until `stop`.

    Its `data` is a folder of its own that goes with it, unless one is given; a frame that names
    no deadline has a minute, since a machine may stall for longer than the setting's default. Its
    port is a free one, unless one is given. With traced=True, coverage follows it, which slows its
    start by half: for tests whose server runs code that nothing else does.
    `lines` collects its log as dictionaries; `await_event` waits for one of them.
    """

    def __init__(self, *command: str, **settings: object) -> None:
        self.port = int(str(settings.pop("port", 0))) or free_port()
        self.grpc_port = int(str(settings.get("grpc_port", 0)))
        env = environ_without_coverage()
        if settings.pop("traced", False):
            env |= {k: v for k, v in os.environ.items() if k.startswith("COVERAGE_")}
        self._data = tempfile.TemporaryDirectory(prefix="lineside-data-")
        settings = {"data": self._data.name, "max_wait_ms": 60_000} | settings
        self.data = Path(str(settings["data"]))
        env |= {"LINESIDE_" + k.upper(): str(v) for k, v in settings.items()}
        env["LINESIDE_PORT"] = str(self.port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines: list[dict[str, Any]] = []
        self._arrived: queue.Queue[dict[str, Any]] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, *(command or ("-m", "server"))],
            cwd=ROOT,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"event": "stderr", "text": text.rstrip()}
            self.lines.append(line)
            self._arrived.put(line)
        self._arrived.put({"event": "end"})

    def await_event(self, name: str, timeout: float = 60) -> dict[str, Any]:
        """The next log line whose event is `name`; fails where the server ends before it."""
        while True:
            line = self._arrived.get(timeout=timeout)
            if line["event"] == name:
                return line
            assert line["event"] != "end", f"the server ended: {self.lines}"

    def await_ready(self, timeout: float = 60) -> None:
        """Returns once the model is loaded and the port answers; the one may come before the
        other."""
        self.await_event("model loaded", timeout)
        self.await_listening(timeout)

    def await_listening(self, timeout: float = 60) -> None:
        """Returns once the port answers."""
        pause = threading.Event()
        until = time.monotonic() + timeout
        while True:
            try:
                assert requests.get(self.url + "/livez", timeout=timeout).status_code == 200
                return
            except requests.ConnectionError:
                assert time.monotonic() < until, "the server does not listen"
                pause.wait(0.01)

    def request_line(self, request_id: str, timeout: float = 60) -> dict[str, Any]:
        """The log line of the request with this id, once it is there."""
        for line in list(self.lines):
            if line.get("request_id") == request_id:
                return line
        while True:
            line = self._arrived.get(timeout=timeout)
            if line.get("request_id") == request_id:
                return line
            assert line["event"] != "end", f"the server ended: {self.lines}"

    def worker_pid(self) -> int:
        """The process that answers: the only child of the one that was started. Between two of
        them, the next one is awaited."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pause = threading.Event()
        until = time.monotonic() + 60
        while not (numbers := children.read_text().split()):
            assert time.monotonic() < until, "the server has no worker"
            pause.wait(0.01)
        return int(numbers[0])

    def memory(self) -> int:
        """Resident bytes of the worker."""
        statm = Path(f"/proc/{self.worker_pid()}/statm").read_text().split()
        return int(statm[1]) * os.sysconf("SC_PAGE_SIZE")

    def threads(self) -> int:
        """Threads of the worker."""
        return len(os.listdir(f"/proc/{self.worker_pid()}/task"))

    def descriptors(self) -> int:
        """Open file descriptors of the worker."""
        return len(os.listdir(f"/proc/{self.worker_pid()}/fd"))

    def sample(self, name: str, **labels: str) -> float:
        """The value of one line of /metrics, 0 where it is absent."""
        text = requests.get(self.url + "/metrics", timeout=60).text
        own = [line for line in text.split("\n") if line.startswith(name)]
        for family in text_string_to_metric_families("\n".join([*own, ""])):
            for line in family.samples:
                if line.name == name and line.labels == labels:
                    return float(line.value)
        return 0.0

    def recognize(self, data: bytes, **params: Any) -> requests.Response:
        """One raw frame to /v1/recognize."""
        return requests.post(
            self.url + "/v1/recognize",
            data,
            params=params,
            headers={"Content-Type": "image/jpeg"},
            timeout=60,
        )

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Sends `sig`, waits, returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self._reader.join(10)
            assert self.process.stderr is not None
            self.process.stderr.close()
            self._data.cleanup()


@contextmanager
def live_server(*command: str, **settings: object) -> Iterator[LiveServer]:
    """A server that has loaded its model, stopped at the end of the block."""
    server = LiveServer(*command, **settings)
    try:
        server.await_ready()
        yield server
    finally:
        server.stop()


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of another server, in this process, whose requests `handler` answers."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
