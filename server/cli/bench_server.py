"""The whole path of a frame: a server started for the measurement, and clients that ask it."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException

import msgspec

from server.cli.bench_steps import stage_of
from server.config.load import PREFIX, to_environ
from server.config.settings import Settings
from server.errors import StartError
from server.system.resources import available_cores

LONGEST_START = 60.0
# Settings that the measured server shares with the one that is to come.
MEASURED = ("models", "model", "version", "recipe", "max_pixels", "max_side", "wide_interpreter")


class Served(msgspec.Struct, frozen=True):
    """Through a server with the proposed settings: frames a second of `clients` that wait for
    their answers, and the milliseconds that one client waits for its answer."""

    clients: int
    fps: float
    median: float
    p90: float


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(settings: Settings, proposed: dict[str, int | float]) -> Iterator[int]:
    """The port of a server with `settings`' models and what is `proposed`, without keys and
    without anything kept, for the length of the block.

    Raises StartError where it does not start.
    """
    port = free_port()
    given = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    asked = to_environ(settings)
    given |= {key: asked[key] for name in MEASURED if (key := PREFIX + name.upper()) in asked}
    with tempfile.TemporaryDirectory(prefix="lineside-bench-") as data:
        values = proposed | {"port": port, "host": "127.0.0.1", "data": data, "journal": "false"}
        values |= {"keys_file": f"{data}/keys.jsonl", "auth": "off", "log_level": "error"}
        # Neither a deadline nor a full queue is part of what is measured.
        values |= {"max_wait_ms": 60_000, "max_waiting": crowd(available_cores())}
        given |= {PREFIX + name.upper(): str(value) for name, value in values.items()}
        child = subprocess.Popen([sys.executable, "-m", "server"], env=given)
        try:
            _await_ready(child, port)
            yield port
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(settings.stop_timeout + 5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _await_ready(child: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + LONGEST_START
    while time.monotonic() < until:
        if child.poll() is not None:
            raise StartError(f"the server to be measured ended with exit code {child.returncode}")
        # Not listening yet is no error.
        with (
            suppress(OSError, HTTPException),
            closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection,
        ):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.02)
    raise StartError(f"the server to be measured was not ready in {LONGEST_START:g} s")


def crowd(cores: int) -> int:
    """Clients at once that keep every interpreter busy."""
    return 4 * cores


def through_server(port: int, data: bytes, clients: int, seconds: float) -> Served:
    """`clients` that post `data` and wait for the answer, for `seconds`; then one alone.

    Raises StartError where an answer is an error.
    """

    def post(until: float, took: list[float]) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        # Two at least, however slow, or there would be nothing to tell.
        while time.perf_counter() < until or len(took) < 2:
            start = time.perf_counter()
            connection.request("POST", "/v1/recognize", data, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise StartError(f"the server to be measured answered {answer.status}")
            took.append(time.perf_counter() - start)
        connection.close()

    def together(count: int, seconds: float) -> tuple[list[float], float]:
        start, took = time.perf_counter(), list[float]()
        with ThreadPoolExecutor(count) as pool:
            posting = [pool.submit(post, start + seconds, took) for _ in range(count)]
        for each in posting:
            each.result()
        return took, time.perf_counter() - start

    together(1, seconds / 8)
    crowd, elapsed = together(clients, seconds / 2)
    alone = stage_of(together(1, seconds / 2)[0])
    return Served(clients, round(len(crowd) / elapsed, 1), alone.median, alone.p90)
