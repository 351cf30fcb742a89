"""The server under test, with folders, a broker and ports of its own."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from soak import wire

ROOT = Path(__file__).resolve().parents[2]
START_S, STOP_S = 120.0, 60.0
# Small, so that an hour reaches both many times over.
JOURNAL_MB, SAMPLES_MB, SAMPLES_A_MINUTE = 4, 8, 60
BODY_MB, BODY_TIMEOUT_S, JOB_RESULTS_S = 2, 3, 60
SETTINGS = f"""
samples = "on"
samples_mb = {SAMPLES_MB}
samples_per_minute = {SAMPLES_A_MINUTE}
samples_share = 1.0
journal_mb = {JOURNAL_MB}
job_result_ttl = {JOB_RESULTS_S}
max_body_mb = {BODY_MB}
body_timeout = {BODY_TIMEOUT_S}
"""
MODEL, OTHER_MODEL = "parts", "surface"
VERSIONS = (1, 2)


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, below those that Linux gives to outgoing
    connections. Raises OSError if there is none."""
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
    for port in random.sample(range(10_000, int(limits[0])), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def copy_models(folder: Path) -> None:
    """Copies the shipped models to `folder`, and gives MODEL a second version, which answers the
    same."""
    shutil.copytree(ROOT / "models", folder)
    first, second = (folder / MODEL / str(version) for version in VERSIONS)
    shutil.copytree(first, second)
    manifest = json.loads((second / "bundle.json").read_text("utf-8"))
    manifest["version"] = VERSIONS[1]
    (second / "bundle.json").write_text(json.dumps(manifest), "utf-8")


def tables(cameras: dict[str, str], broker_port: int) -> str:
    """The tables of the settings file. cameras: the address of each one's snapshot by its name.
    broker_port: 0 if there is no MQTT broker."""
    lines = [
        f'[[camera]]\nname = "{name}"\nkind = "http"\nurl = "{url}"\ninterval_s = 1.0\n'
        "stall_s = 2.0\n"
        for name, url in cameras.items()
    ]
    if broker_port:
        lines.append(
            f'[[output]]\nkind = "mqtt"\nname = "line"\nhost = "127.0.0.1"\nport = {broker_port}\n'
        )
    return "\n".join(lines)


@contextmanager
def mqtt_broker(folder: Path) -> Iterator[int]:
    """The port of a mosquitto; 0 if it or paho-mqtt is not installed."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None or find_spec("paho") is None:
        yield 0
        return
    port, config = free_port(), folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", "utf-8")
    with (folder / "mosquitto.log").open("wb") as log:
        broker = subprocess.Popen([program, "-c", str(config)], stdout=log, stderr=log)
    try:
        yield port
    finally:
        broker.terminate()
        broker.wait(STOP_S)


class Server:
    """`python -m server serve` with the settings file in `folder`, and its log beside it.

    stop_code: what it ended with; None before `stop`.
    """

    def __init__(self, folder: Path, cameras: dict[str, str], broker_port: int) -> None:
        self.port, self.data = free_port(), folder / "data"
        self.stop_code: int | None = None
        copy_models(folder / "models")
        config = folder / "lineside.toml"
        places = f'port = {self.port}\nmodels = "{folder / "models"}"\ndata = "{self.data}"\n'
        config.write_text(places + SETTINGS + tables(cameras, broker_port), "utf-8")
        self.log = folder / "server.log"
        environ = {k: v for k, v in os.environ.items() if not k.startswith("LINESIDE_")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server", "serve", "--config", str(config)],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=log,
            )
        self.pid = self._process.pid

    def await_ready(self) -> None:
        """Returns once it is ready. Raises RuntimeError, with the end of its log, if it is not."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            with suppress(OSError):
                if wire.ask(self.port, "GET", "/readyz").status == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"the server is not ready: {self.log.read_text('utf-8')[-2000:]}")

    def stop(self) -> int:
        """Ends it as systemd does. Returns its exit code, -9 if it had to be killed."""
        if self.stop_code is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self.stop_code = self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self.stop_code = self._process.wait()
        return self.stop_code


@contextmanager
def running(folder: Path, cameras: dict[str, str]) -> Iterator[tuple[Server, bool]]:
    """A server that is ready, and whether it has an MQTT broker; both end with the block."""
    with mqtt_broker(folder) as broker_port:
        server = Server(folder, cameras, broker_port)
        try:
            server.await_ready()
            yield server, broker_port > 0
        finally:
            server.stop()
