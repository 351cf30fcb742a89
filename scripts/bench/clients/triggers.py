"""From a trigger to its verdict: one result for each of many, and the time until it is there.

    python scripts/bench/clients/triggers.py [--triggers N]

A camera that is an HTTP server gives one 720p picture, triggered in turn by each source: a message
of a broker, the coil of the server that a PLC polls, a bit that the server polls at a PLC, a
request, and motion. The clock ends when the broker's subscriber has the verdict, for the coil when
the PLC reads it. Needs mosquitto, and the packages of server/requirements-mqtt.txt and -modbus.txt.
"""

import argparse
import asyncio
import http.server
import itertools
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from paho.mqtt.client import Client  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from pymodbus.client import ModbusTcpClient  # noqa: E402
from pymodbus.server import ModbusTcpServer  # noqa: E402
from pymodbus.simulator import DataType, SimData, SimDevice  # noqa: E402

from bench import inputs  # noqa: E402
from bench.clients.forms import build  # noqa: E402
from bench.servers.lineside import Bare, start_server  # noqa: E402
from bench.servers.service import free_port  # noqa: E402

PYTHON = Path(sys.executable)
TIMEOUT_S = 60.0
POLL_S = 0.005
# Of the trigger by motion.
FPS, SETTLE_S = 50, 0.05
SOURCES = ("request", "message", "coil", "bit", "motion")


class Camera(http.server.ThreadingHTTPServer):
    """Answers every GET with `picture`, and /stream with an endless stream of it."""

    daemon_threads = True

    def __init__(self, picture: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.picture = picture
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Camera

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path != "/stream":
            self.send_header("Content-Length", str(len(self.server.picture)))
            self.end_headers()
            self.wfile.write(self.server.picture)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        with suppress(ConnectionError):
            while True:
                picture = self.server.picture
                head = f"--next\r\nContent-Length: {len(picture)}\r\n\r\n".encode()
                self.wfile.write(head + picture + b"\r\n")
                time.sleep(1 / FPS)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class PolledPlc:
    """A PLC with one coil, `on`, which the server polls."""

    def __init__(self) -> None:
        self.port = free_port()
        self.on = False
        self._read = threading.Condition()
        self._last = False
        threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True).start()

    async def _serve(self) -> None:
        one = [SimData(0, count=1, values=False, datatype=DataType.BITS)]
        registers = [SimData(0, count=1, datatype=DataType.REGISTERS)]
        device = SimDevice(1, (one, one, registers, registers), action=self._answer)
        server = ModbusTcpServer(device, address=("127.0.0.1", self.port))
        await server.serve_forever(background=True)
        await server.serving

    async def _answer(
        self, function: int, start: int, address: int, count: int, registers: Any, values: Any
    ) -> None:
        with self._read:
            registers[0] = int(self.on)
            self._last = self.on
            self._read.notify_all()

    def await_read(self) -> None:
        """Return once the server has seen the coil as it is."""
        with self._read:
            if not self._read.wait_for(lambda: self._last == self.on, TIMEOUT_S):
                raise RuntimeError("the server does not poll the coil")


class Bench:
    """Triggers, and the verdicts that come. `verdicts` has the time of each, by the broker."""

    def __init__(self, url: str, ports: dict[str, int], camera: Camera, plc: PolledPlc) -> None:
        self._url = url
        self._camera = camera
        self._plc = plc
        self.pause = threading.Event()
        self._pictures = itertools.cycle((mirrored(camera.picture), camera.picture))
        self.verdicts: queue.Queue[tuple[float, dict[str, Any]]] = queue.Queue()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = lambda _, __, message: self.verdicts.put(
            (time.perf_counter(), json.loads(message.payload))
        )
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", ports["broker"])
        self._client.loop_start()
        self._client.subscribe([(f"lineside/{name}/verdict", 1) for name in ("st4", "st5", "st6")])
        subscribed.wait(TIMEOUT_S)
        # Of its own: the broker holds back a verdict on a connection that has not acknowledged.
        self._sender = Client(CallbackAPIVersion.VERSION2)
        self._sender.connect("127.0.0.1", ports["broker"])
        self._sender.loop_start()
        self._coil = ModbusTcpClient("127.0.0.1", port=ports["plc"], timeout=TIMEOUT_S)
        self._coil.connect()

    def await_connected(self) -> None:
        """Return once cameras and triggers are there. Raises TimeoutError."""
        url = self._url.replace("/v1/recognize", "/metrics")
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                lines = answer.read().decode().splitlines()
            names = ("lineside_camera_connected{", "lineside_trigger_connected{")
            if sum(float(line.split()[-1]) for line in lines if line.startswith(names)) == 5:
                # Motion needs a first look.
                self.pause.wait(1.0)
                return
            self.pause.wait(0.1)
        raise TimeoutError("a camera or a trigger is not connected")

    def request(self) -> None:
        url = self._url.replace("/v1/recognize", "/v1/cameras/st4/trigger")
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=TIMEOUT_S).read()

    def message(self) -> None:
        self._sender.publish("ask", "{}", qos=1)

    def bit(self) -> None:
        self._plc.on = True

    def motion(self) -> None:
        self._camera.picture = next(self._pictures)

    def coil(self) -> float:
        """Trigger by the coil; return when the PLC reads the result, which it takes."""
        self._coil.write_coil(0, True)
        while not (registers := self._coil.read_input_registers(0, count=5).registers)[0] & 0b100:
            time.sleep(0.001)
        ended = time.perf_counter()
        self._coil.write_register(0, registers[3])
        self._coil.write_coil(0, False)
        while self._coil.read_input_registers(0, count=1).registers[0] & 0b100:
            pass
        return ended

    def time_of(self, source: str) -> tuple[float, dict[str, Any]]:
        """Trigger once; return the seconds until its verdict, and that."""
        began = time.perf_counter()
        ended = self.coil() if source == "coil" else getattr(self, source)()
        at, verdict = self.verdicts.get(timeout=TIMEOUT_S)
        if source == "bit":
            self._plc.await_read()
            self._plc.on = False
            self._plc.await_read()
        return (ended or at) - began, verdict


def mirrored(picture: bytes) -> bytes:
    pixels: Any = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    return bytes(cv2.imencode(".jpg", cv2.flip(pixels, 1))[1])


def tables(ports: dict[str, int], camera: Camera, plc: PolledPlc) -> dict[str, str]:
    """The settings `camera`, `trigger` and `output`."""
    url, here = f"http://127.0.0.1:{camera.server_port}", {"host": "127.0.0.1"}
    broker = {"kind": "mqtt", **here, "port": ports["broker"]}
    bit = {"kind": "modbus-client", **here, "port": plc.port, "address": 0, "poll_s": POLL_S}
    coil = {"kind": "modbus-server", "port": ports["plc"], "trigger_camera": "st6"}
    cameras: list[dict[str, Any]] = [
        *({"name": name, "kind": "http", "url": url, "trigger": "post"} for name in ("st4", "st6")),
        {"name": "st5", "kind": "mjpeg", "url": url + "/stream", "trigger": "motion"}
        | {"motion_fps": FPS, "settle_s": SETTLE_S},
    ]
    arrays: dict[str, list[Any]] = {
        "camera": [{**each, "interval_s": TIMEOUT_S} for each in cameras],
        "trigger": [
            {"name": "message", "camera": "st4", "topic": "ask", **broker},
            {"name": "bit", "camera": "st4", **bit},
        ],
        "output": [
            {"name": "broker", **broker},
            {"name": "plc", "cameras": ["st6"], **coil},
        ],
    }
    return {name: json.dumps(array) for name, array in arrays.items()}


def main() -> int:
    """Measures and prints. Exit code 0 if every trigger had exactly one verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triggers", type=int, default=1000)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    args = parser.parse_args()
    ports = {name: free_port() for name in ("broker", "plc")}
    right = True
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lineside-bench.")))
        model = inputs.lay_out(args.bundle, folder / "models", exact=False)
        frame = inputs.find_frames(folder, PYTHON)["720p"]
        broker = subprocess.Popen(
            ["mosquitto", "-p", str(ports["broker"])],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(broker.wait)
        stack.callback(broker.terminate)
        with Bare(PYTHON, model.bundle) as bare:
            label = bare.measure(frame, 1.0)["label"]
        camera, plc = Camera(frame.read_bytes()), PolledPlc()
        server = stack.enter_context(
            start_server(PYTHON, model, folder / "log", **tables(ports, camera, plc))
        )
        server.await_answer(build("raw", "file", frame.read_bytes()), label)
        bench = Bench(server.url, ports, camera, plc)
        bench.await_connected()
        print(f"{'ms from trigger to verdict':30}{'p50':>9}{'p99':>9}{'right':>8}{'others':>8}")
        for source in SOURCES:
            results = [bench.time_of(source) for _ in range(args.triggers)]
            # A verdict too many would come at once, or with the next movement.
            bench.pause.wait(1.0)
            times = [seconds * 1000 for seconds, _ in results]
            names = {verdict["request_id"] for _, verdict in results}
            verdicts = sum(verdict["error"] is None for _, verdict in results)
            others = bench.verdicts.qsize() + len(results) - len(names)
            right = right and (verdicts, others) == (args.triggers, 0)
            figures = f"{median(times):9.2f}{quantiles(times, n=100)[98]:9.2f}"
            print(f"{source:30}{figures}{verdicts:8}{others:8}", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
