"""The simulated line against a server with outputs: is each part's verdict right, once, in order?

    python scripts/bench/outputs.py [--frames N] [--rate FRAMES_A_SECOND] [--alone]

Parts whose class is known are posted over one kept connection to a server with three outputs:
MQTT, a Modbus server that a PLC polls, and an OPC UA server. A client reads each of them; all have
to see every part once, with the verdict of its answer, in the order of the answers. The time to the
coil runs from the frame's last byte to the moment when the PLC sees a valid result, less the
recognition's own time (`timing_ms.total`). Unless --alone, each frame goes also to a server without
outputs, for what they add to an answer; a message that comes before the answer counts as negative.

Needs mosquitto, and the packages of server/requirements-mqtt.txt, -modbus.txt and -opcua.txt.
"""

import argparse
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from queue import Empty
from statistics import median, quantiles
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from asyncua import ua  # noqa: E402
from asyncua.sync import Client as OpcUaClient  # noqa: E402
from camera_client.frames import Frame  # noqa: E402
from line_camera.pictures import frames, keep_memory  # noqa: E402
from paho.mqtt.client import Client  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from pymodbus.client import ModbusTcpClient  # noqa: E402

from bench import inputs  # noqa: E402
from bench.clients import answers  # noqa: E402
from bench.clients.forms import build  # noqa: E402
from bench.servers.lineside import start_server  # noqa: E402
from bench.servers.service import free_port  # noqa: E402

PYTHON = Path(sys.executable)
TIMEOUT_S, PAUSE_S = 60.0, 1.0
# Seconds between two looks: of a PLC, and of a client of OPC UA, whose reads cost the server more.
MODBUS_POLL_S, OPCUA_POLL_S = 0.001, 0.01
# Register 4 of a result by the guide's map.
VERDICTS = {1: "pass", 2: "fail", 3: "unsure"}
NAMESPACE = "urn:lineside:machine-vision"


class Result(NamedTuple):
    """One part's verdict as a client saw it, with the time (time.perf_counter)."""

    part: str
    verdict: str | None
    at: float


class Posted(NamedTuple):
    """One part's answer. sent, answered: when the last byte of its frame was sent and the answer
    was there (time.perf_counter). took, recognition: ms. right: the label is the known one."""

    part: str
    verdict: str | None
    sent: float
    answered: float
    took: float
    recognition: float
    right: bool


def await_connected(connect: Callable[[], object]) -> None:
    """Call `connect` until it raises no OSError. Raises the last one after TIMEOUT_S."""
    until = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connect()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def subscribe(port: int, results: Any, stop: Any) -> None:
    """Put what the broker publishes into the queue `results`."""
    client = Client(CallbackAPIVersion.VERSION2)

    def note(_: Any, __: Any, message: Any) -> None:
        fields = json.loads(message.payload)
        results.put(Result(fields["part"], fields["verdict"], time.perf_counter()))

    client.on_message = note
    client.on_connect = lambda client, *_: client.subscribe("lineside/+/verdict", 1)
    client.on_subscribe = lambda *_: results.put(None)
    await_connected(lambda: client.connect("127.0.0.1", port))
    client.loop_start()
    stop.wait()
    client.loop_stop()


def poll_modbus(port: int, results: Any, stop: Any) -> None:
    """Put each valid result into the queue `results` as a PLC sees it, and acknowledge it. The
    first item, None, says that the reader is connected; so in the other readers."""
    last = 0
    with ModbusTcpClient("127.0.0.1", port=port, timeout=TIMEOUT_S) as plc:
        results.put(None)
        while not stop.wait(MODBUS_POLL_S):
            registers = plc.read_input_registers(0, count=24).registers
            number = registers[2] << 16 | registers[3]
            if registers[0] & 0b100 and number != last:
                last, at = number, time.perf_counter()
                text = b"".join(value.to_bytes(2, "big") for value in registers[8:24])
                part = text.rstrip(b"\0").decode()
                results.put(Result(part, VERDICTS.get(registers[4]), at))
                plc.write_register(0, number & 0xFFFF)


def poll_opcua(port: int, results: Any, stop: Any) -> None:
    """Put each result into the queue `results` as a client of OPC UA, and acknowledge it."""
    last = 0
    client = OpcUaClient(f"opc.tcp://127.0.0.1:{port}/lineside", timeout=TIMEOUT_S)
    await_connected(client.connect)
    space = client.get_namespace_index(NAMESPACE)
    management = client.nodes.objects.get_child(
        [f"{space}:VisionSystem", f"{space}:ResultManagement"]
    )
    content = management.get_child(
        [f"{space}:Results", f"{space}:Result", f"{space}:resultContent"]
    )
    acknowledged = management.get_child([f"{space}:Acknowledged"])
    results.put(None)
    while not stop.wait(OPCUA_POLL_S):
        text = content.read_value()
        fields = json.loads(text) if text else {}
        if fields and fields["seq"] != last:
            last = fields["seq"]
            results.put(Result(fields["part"], fields["verdict"], time.perf_counter()))
            acknowledged.write_value(last, ua.VariantType.UInt32)
    client.disconnect()


READERS = {"mqtt": subscribe, "modbus": poll_modbus, "opcua": poll_opcua}


class Line:
    """Posts parts to one server over a kept connection."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._address = (self._parts.hostname or "", self._parts.port or 80)
        self._connection = socket.create_connection(self._address)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post(self, frame: Frame, part: str) -> Posted:
        """Post one part. Raises RuntimeError unless the answer is 200."""
        path = f"{self._parts.path}?camera=line&part={part}"
        host = f"{self._address[0]}:{self._address[1]}"
        wire = build("raw", "file", frame.data).wire(path, host)
        start = time.perf_counter()
        self._connection.sendall(wire)
        sent = time.perf_counter()
        answer = answers.read(self._connection)
        end = time.perf_counter()
        if answer.status != 200:
            raise RuntimeError(f"{part} got {answer.status}: {answer.body[:200]!r}")
        fields = json.loads(answer.body)
        return Posted(
            part,
            fields["verdict"],
            sent,
            end,
            (end - start) * 1000,
            fields["timing_ms"]["total"],
            fields["predictions"][0]["label"] == frame.kind,
        )


def drive(
    lines: dict[str, Line], pictures: Sequence[Frame], rate: float, total: int
) -> dict[str, list[Posted]]:
    """Post `total` parts to each line in turn, `rate` a second. Return what became of them."""
    posted: dict[str, list[Posted]] = {name: [] for name in lines}
    began = time.perf_counter()
    for number in range(total):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        frame, part = pictures[number % len(pictures)], f"{number + 1:06d}"
        for name in sorted(lines, reverse=bool(number % 2)):
            posted[name].append(lines[name].post(frame, part))
    return posted


def report(posted: dict[str, list[Posted]], results: dict[str, list[Result]]) -> bool:
    """Print the figures. Return whether each reader saw each part once, in order."""
    own = posted["with"]
    rate = (len(own) - 1) / (own[-1].answered - own[0].answered)
    print(f"{len(own)} parts, {rate:.1f} a second")
    print(f"labels as known: {sum(each.right for each in own) / len(own):.2%}")
    expected = [(each.part, each.verdict) for each in own]
    same = True
    for name, each in results.items():
        agree = [(result.part, result.verdict) for result in each] == expected
        same = same and agree
        order = "the same in the same order" if agree else "NOT the same in the same order"
        print(f"{name}: {len(each)} verdicts, {order}")
    print(f"{'ms':44}{'p50':>9}{'p99':>9}")
    for name, ways in posted.items():
        print(row(f"answer, {name} outputs", [way.took for way in ways]))
    print(row("recognition", [each.recognition for each in own]))
    if "without" in posted:
        pairs = zip(own, posted["without"], strict=True)
        print(row("what the outputs add to an answer", [a.took - b.took for a, b in pairs]))
    if same:
        for name, each in results.items():
            pairs_of = zip(each, own, strict=True)
            later = [(result.at - way.answered) * 1000 for result, way in pairs_of]
            print(row(f"from the answer to {name}", later))
        seen = zip(results["modbus"], own, strict=True)
        coil = [(result.at - way.sent) * 1000 - way.recognition for result, way in seen]
        print(row("from the last byte to the coil, over recognition", coil))
    return same


def take(queue: Any, count: int) -> list[Result]:
    """Return `count` results, or fewer after a pause of TIMEOUT_S, and those that come after them
    within PAUSE_S."""
    results: list[Result] = []
    with suppress(Empty):
        while True:
            results.append(queue.get(timeout=TIMEOUT_S if len(results) < count else PAUSE_S))
    return results


def row(name: str, values: list[float]) -> str:
    return f"{name:44}{median(values):9.2f}{quantiles(values, n=100)[98]:9.2f}"


def main() -> int:
    """Measure and print. Return 0 if every reader saw every part once and in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=300, help="different ones, posted in turn")
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--alone", action="store_true", help="no second server")
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    args = parser.parse_args()
    keep_memory()
    pictures = frames(min(args.pictures, args.frames), 1, 640, 480, 90)
    ports = {name: free_port() for name in ("mqtt", "modbus", "opcua")}
    tables = [
        {"name": "mqtt", "kind": "mqtt", "host": "127.0.0.1", "port": ports["mqtt"]},
        {"name": "modbus", "kind": "modbus-server", "port": ports["modbus"]},
        {"name": "opcua", "kind": "opcua", "port": ports["opcua"]},
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lineside-bench.")))
        model = inputs.lay_out(args.bundle, folder / "models", exact=False)
        broker = subprocess.Popen(
            ["mosquitto", "-p", str(ports["mqtt"])],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(broker.wait)
        stack.callback(broker.terminate)
        outputs = {"with": {"output": json.dumps(tables)}, "without": {}}
        if args.alone:
            del outputs["without"]
        services = {
            name: stack.enter_context(
                start_server(PYTHON, model, folder / f"{name}.log", **settings)
            )
            for name, settings in outputs.items()
        }
        for service in services.values():
            await_connected(partial(urlopen, service.url.replace("/v1/recognize", "/readyz")))
        # Each reader in a process of its own, as on the line: they would wait for each other.
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        queues = {name: context.Queue() for name in READERS}
        readers = [
            context.Process(target=read, args=(ports[name], queues[name], stop))
            for name, read in READERS.items()
        ]
        for reader in readers:
            reader.start()
        for queue in queues.values():
            queue.get(timeout=TIMEOUT_S)  # it is connected
        lines = {name: Line(service.url) for name, service in services.items()}
        posted = drive(lines, pictures, args.rate, args.frames)
        results = {name: take(queue, args.frames) for name, queue in queues.items()}
        stop.set()
        for reader in readers:
            reader.join()
    return 0 if report(posted, results) else 1


if __name__ == "__main__":
    sys.exit(main())
