"""Cameras that the server reads itself: which share of their frames is judged in time?

    python scripts/bench/servers/cameras.py [--cameras N] [--rate FRAMES_A_SECOND] [--seconds S]

Another process serves N MJPEG cameras by HTTP, each with the frames of the simulated line. The
server has one table [[camera]] for each, with `interval_s` of 1/rate. A frame counts if it is
answered before it is one interval old; what the cameras sent in the time is the whole. Both
processes share this machine, so its other load counts: it is printed.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[3]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from line_camera.pictures import frames  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from bench import inputs  # noqa: E402
from bench.servers.lineside import start_server  # noqa: E402

TIMEOUT_S = 120.0
PICTURES = 20


def serve_cameras(pipe: Connection, rate: float, width: int, height: int) -> None:
    """Send the port through `pipe`, then serve a stream to each who asks, until the end."""
    pictures = [frame.data for frame in frames(PICTURES, 1, width, height, 90)]

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
            self.end_headers()
            due, number = time.monotonic(), 0
            with suppress(ConnectionError):
                while True:
                    time.sleep(max(0.0, due - time.monotonic()))
                    due += 1 / rate
                    picture = pictures[number % PICTURES]
                    head = f"--next\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")
                    number += 1

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    pipe.send(server.server_port)
    server.serve_forever()


def ask(url: str) -> str:
    with urlopen(url, timeout=TIMEOUT_S) as answer:
        text: str = answer.read().decode()
    return text


def await_that(done: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"not within {TIMEOUT_S:g} s: all cameras connected")
        time.sleep(0.2)


def counts(base: str) -> dict[str, float]:
    """Return the frames of all cameras by result."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(ask(base + "/metrics")):
        for sample in family.samples:
            if sample.name == "lineside_camera_frames_total":
                result = sample.labels["result"]
                totals[result] = totals.get(result, 0.0) + sample.value
    return totals


def main() -> int:
    """Measure and print. Return 0 if 95% of the frames were judged in time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=10)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    source = context.Process(
        target=serve_cameras, args=(there, args.rate, args.width, args.height), daemon=True
    )
    source.start()
    url = f"http://127.0.0.1:{here.recv()}/"
    tables = [
        {"name": f"st{n}", "kind": "mjpeg", "url": url, "interval_s": 1 / args.rate}
        for n in range(args.cameras)
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lineside-bench.")))
        model = inputs.lay_out(args.bundle, folder / "models", exact=False)
        service = stack.enter_context(
            start_server(
                Path(sys.executable), model, folder / "server.log", camera=json.dumps(tables)
            )
        )
        base = service.url.removesuffix("/v1/recognize")

        def connected() -> bool:
            with suppress(OSError):
                states = json.loads(ask(base + "/v1/cameras"))["cameras"]
                return all(each["frames"] for each in states)
            return False

        await_that(connected)
        before, began = counts(base), time.monotonic()
        cpu = sum(service.cpu_seconds())
        time.sleep(args.seconds)
        after, took = counts(base), time.monotonic() - began
        cpu = sum(service.cpu_seconds()) - cpu
    source.terminate()
    sent = args.cameras * args.rate * took
    judged = {result: after[result] - before.get(result, 0.0) for result in after}
    share = judged["answered"] / sent
    print(f"{args.cameras} cameras, {args.rate:g} frames a second each, {took:.0f} s:")
    print(f"  {sent:.0f} frames sent, {judged} judged: {share:.1%} in time")
    print(f"  {cpu / took:.2f} cores; load of the machine {os.getloadavg()[0]:.1f}")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
