"""More than our server can do: four times its capacity, and a camera that floods beside a calm one.

Frames carry a deadline; a good answer is 200 within it, by the client's clock.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from bench.contestants import CORES
from bench.forms import build
from bench.load import Figures, wrk
from bench.openloop import Driver, Outcome, Stream
from bench.service import Service

DEADLINE_MS = 200
OVER, CALM, FLOOD = 4.0, 0.25, 2.5  # multiples of the capacity; the flood is ten times the calm
CONNECTIONS, CLIENTS = 512, 8
CODE = re.compile(rb'"code":"([A-Z_]+)"')


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p99": None, "max": None}
    p50, p99, most = np.percentile(values, [50, 99, 100])
    return {"p50": float(p50), "p99": float(p99), "max": float(most)}


def _kind(outcome: Outcome) -> str:
    if outcome.status == 200:
        return "accepted"
    code = CODE.search(outcome.body)
    return code.group(1).decode() if code else f"status {outcome.status}"


def judge(outcomes: list[Outcome], seconds: float) -> Figures:
    """What came of the requests of one stream, offered over `seconds`."""
    took = {id(o): o.milliseconds for o in outcomes}
    accepted = [ms for o in outcomes if o.status == 200 and (ms := took[id(o)]) is not None]
    refused = [ms for o in outcomes if o.status == 503 and (ms := took[id(o)]) is not None]
    in_time = sum(ms <= DEADLINE_MS for ms in accepted)
    return {
        "offered": len(outcomes),
        "in_time": in_time,
        "in_time_fps": in_time / seconds,
        "share_in_time": in_time / len(outcomes) if outcomes else None,
        "late_ms": _percentiles([ms - DEADLINE_MS for ms in accepted]),
        "refusal_ms": _percentiles(refused),
        "sent_late_ms": _percentiles([(o.sent - o.due) * 1000 for o in outcomes if o.sent]),
        "kinds": dict(Counter(map(_kind, outcomes))),
    }


def _stream(server: Service, data: bytes, camera: str, rate: float) -> Stream:
    parts = urlsplit(server.url)
    path = f"{parts.path}?deadline_ms={DEADLINE_MS}&camera={camera}"
    return Stream(camera, build("raw", "file", data).wire(path, parts.netloc), rate)


def _drive(server: Service, streams: list[Stream], seconds: float) -> dict[str, Figures]:
    parts = urlsplit(server.url)
    address = (parts.hostname or "", parts.port or 80)
    start, before = time.process_time(), time.perf_counter()
    outcomes = Driver(address, streams, seconds, CONNECTIONS).run()
    share = (time.process_time() - start) / (time.perf_counter() - before)
    own = {s.name: judge([o for o in outcomes if o.stream == s.name], seconds) for s in streams}
    return {**own, "generator": {"cores_used": share}}


def measure(server: Service, data: bytes, label: str, folder: Path, seconds: float) -> Figures:
    """Overload and the two cameras, each for `seconds`; capacity is what the server answers to 8
    clients that wait for their answers, measured before and after each."""

    def capacity() -> float:
        request = build("raw", "file", data)
        run = wrk(server.url, request, label, CLIENTS, folder, server.cpu_seconds, seconds / 2)
        return float(run["fps"])

    capacities = [capacity()]
    over = _drive(server, [_stream(server, data, "line", OVER * capacities[0])], seconds)
    capacities.append(capacity())
    mean = sum(capacities[:2]) / 2
    over["line"]["share_of_capacity"] = over["line"]["in_time_fps"] / mean
    rates = {"calm": CALM * capacities[1], "flooding": FLOOD * capacities[1]}
    streams = [_stream(server, data, camera, rate) for camera, rate in rates.items()]
    cameras = _drive(server, streams, seconds)
    capacities.append(capacity())
    return {
        "deadline_ms": DEADLINE_MS,
        "capacity_fps": capacities,
        "service_ms": CORES * 2000 / (capacities[0] + capacities[1]),
        "overload": over,
        "cameras": {"rates": rates, **cameras},
    }


def growth(
    server: Service, data: bytes, label: str, folder: Path, first: int, last: int
) -> Figures:
    """Memory (MB) after at least `first` frames, after at least `last`, and between; raw bodies
    from 8 clients, in bursts of two seconds."""
    request, frames, marks = build("raw", "file", data), 0, list[tuple[int, float]]()
    while frames < last:
        run = wrk(server.url, request, label, CLIENTS, folder, server.cpu_seconds, 2.0)
        if not run["good"]:
            raise RuntimeError("the server gave no good answer in two seconds")
        frames += run["good"]
        if frames >= first:
            marks.append((frames, server.memory()["rss"]))
    return {"marks": marks, "growth_mb": marks[-1][1] - marks[0][1]}
