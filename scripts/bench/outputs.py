"""From an answer to the broker and the PLC, and what the outbox adds to an answer.

    python scripts/bench/outputs.py [--frames N] [--rate FRAMES_A_SECOND]

One frame over one kept connection, posted in turn to a server with two outputs (MQTT, and a Modbus
server that a PLC polls) and to one without any. The clock of the outputs begins when the answer is
there; a message that comes before it counts as negative. Needs mosquitto, and the packages of
server/requirements-mqtt.txt and -modbus.txt.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from paho.mqtt.client import Client  # noqa: E402
from paho.mqtt.enums import CallbackAPIVersion  # noqa: E402
from pymodbus.client import ModbusTcpClient  # noqa: E402

from bench import inputs  # noqa: E402
from bench.clients.forms import build  # noqa: E402
from bench.latency import WARM_UP, keep_alive  # noqa: E402
from bench.servers.lineside import Bare, start_server  # noqa: E402
from bench.servers.service import free_port  # noqa: E402

PYTHON = Path(sys.executable)
TIMEOUT_S = 60.0


def subscribe(port: int, seen: dict[int, float]) -> Client:
    """A client that notes when it has which message."""
    client = Client(CallbackAPIVersion.VERSION2)

    def note(_: Any, __: Any, message: Any) -> None:
        seen[json.loads(message.payload)["seq"]] = time.perf_counter()

    client.on_message = note
    client.on_connect = lambda client, *_: client.subscribe("lineside/+/verdict", 1)
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        try:
            client.connect("127.0.0.1", port)
            break
        except OSError:
            time.sleep(0.05)
    client.loop_start()
    return client


def poll(port: int, seen: dict[int, float], stop: threading.Event) -> None:
    """Notes when the PLC sees which result, and acknowledges it."""
    with ModbusTcpClient("127.0.0.1", port=port, timeout=TIMEOUT_S) as plc:
        while not stop.wait(0.001):
            registers = plc.read_input_registers(0, count=4).registers
            number = registers[2] << 16 | registers[3]
            if registers[0] & 0b100 and number not in seen:
                seen[number] = time.perf_counter()
                plc.write_register(0, number & 0xFFFF)


def line(name: str, values: list[float]) -> str:
    return f"{name:34}{median(values):9.2f}{quantiles(values, n=100)[98]:9.2f}"


def main() -> int:
    """Measures and prints. Exit code 0 if every message came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    args = parser.parse_args()
    ports = {name: free_port() for name in ("mqtt", "modbus")}
    tables = [
        {"name": "mqtt", "kind": "mqtt", "host": "127.0.0.1", "port": ports["mqtt"]},
        {"name": "modbus", "kind": "modbus-server", "port": ports["modbus"]},
    ]
    seen: dict[str, dict[int, float]] = {name: {} for name in ports}
    answered: list[float] = []
    taken: dict[str, list[float]] = {"with": [], "without": []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lineside-bench.")))
        model = inputs.lay_out(args.bundle, folder / "models", exact=False)
        frame = inputs.find_frames(folder, PYTHON)["720p"]
        request = build("raw", "file", frame.read_bytes())
        broker = subprocess.Popen(
            ["mosquitto", "-p", str(ports["mqtt"])],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        stack.callback(broker.wait)
        stack.callback(broker.terminate)
        client = subscribe(ports["mqtt"], seen["mqtt"])
        with Bare(PYTHON, model.bundle) as bare:
            label = bare.measure(frame, 1.0)["label"]
        output = json.dumps(tables)
        services = {
            "with": stack.enter_context(
                start_server(PYTHON, model, folder / "with.log", output=output)
            ),
            "without": stack.enter_context(start_server(PYTHON, model, folder / "without.log")),
        }
        for service in services.values():
            service.await_answer(request, label)
        stop = threading.Event()
        plc = threading.Thread(target=poll, args=(ports["modbus"], seen["modbus"], stop))
        plc.start()
        posts = {
            name: keep_alive(each.url, "raw", frame.read_bytes()) for name, each in services.items()
        }
        for number in range(WARM_UP + args.frames):
            began = time.perf_counter()
            for name in sorted(posts, reverse=bool(number % 2)):
                start = time.perf_counter()
                posts[name]()
                taken[name].append((time.perf_counter() - start) * 1000)
                if name == "with":
                    answered.append(time.perf_counter())
            time.sleep(max(0.0, began + 1 / args.rate - time.perf_counter()))
        # `await_answer` has sent the first.
        total = len(answered) + 1
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until and any(len(each) < total for each in seen.values()):
            time.sleep(0.05)
        stop.set()
        plc.join()
        client.loop_stop()
    print(f"{'ms':34}{'p50':>9}{'p99':>9}")
    for name in taken:
        print(line(f"answer, {name} outputs", taken[name][WARM_UP:]))
    pairs = zip(taken["with"][WARM_UP:], taken["without"][WARM_UP:], strict=True)
    print(line("what the outputs add to an answer", [a - b for a, b in pairs]))
    for name, times in seen.items():
        later = [(times[seq] - at) * 1000 for seq, at in enumerate(answered, 2) if seq in times]
        print(line(f"from the answer to {name}", later[WARM_UP:]))
    return 0 if all(len(each) == total for each in seen.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
