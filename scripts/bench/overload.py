"""More than our server can do: four times its capacity, and a camera that floods beside a calm one.

Frames carry a deadline; a good answer is 200 within it, by the client's clock.
"""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from urllib.parse import urlsplit

import numpy as np

from bench.clients.forms import build
from bench.clients.load import Figures, wrk
from bench.clients.openloop import Driver, Outcome, Stream
from bench.servers.contestants import CORES
from bench.servers.service import Service

DEADLINE_MS = 200
OVER, CALM, FLOOD = 4.0, 0.25, 2.5  # multiples of the capacity; the flood is ten times the calm
CONNECTIONS, CLIENTS, TURNS = 512, 8, 6
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
    """Return how the requests of one stream ended, offered over `seconds`."""
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


@dataclass
class Drives:
    """Drives of the same streams: what became of each request, the seconds until the last was
    answered, and the cores that the generator took."""

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    processor: float = 0.0

    def add(self, server: Service, streams: list[Stream], seconds: float) -> float:
        """Drives once more, for `seconds`; good answers a second, until the last of them: frames
        that still wait when the last request has left are worked on after it."""
        parts = urlsplit(server.url)
        address = (parts.hostname or "", parts.port or 80)
        start = time.process_time()
        outcomes = Driver(address, streams, seconds, CONNECTIONS).run()
        self.processor += time.process_time() - start
        took = max([seconds, *(o.answered for o in outcomes if o.answered and o.status == 200)])
        self.seconds += took
        self.outcomes += outcomes
        return float(judge(outcomes, took)["in_time_fps"])

    def figures(self) -> dict[str, Figures]:
        """By stream, and the generator's own."""
        names = dict.fromkeys(o.stream for o in self.outcomes)
        own = {n: judge([o for o in self.outcomes if o.stream == n], self.seconds) for n in names}
        return {**own, "generator": {"cores_used": self.processor / self.seconds}}


def measure(server: Service, data: bytes, label: str, folder: Path, seconds: float) -> Figures:
    """Overload in TURNS, then the two cameras, each for `seconds` in all.

    Capacity is what the server answers to 8 clients that wait for their answers. It is measured
    before and after each turn, since the machine may change in between; the share is the median
    over the turns.
    """
    step, request = seconds / TURNS, build("raw", "file", data)

    def capacity() -> float:
        run = wrk(server.url, request, label, CLIENTS, folder, server.cpu_seconds, step)
        return float(run["fps"])

    capacities, over, shares = [capacity()], Drives(), []
    for _ in range(TURNS):
        good = over.add(server, [_stream(server, data, "line", OVER * capacities[-1])], step)
        capacities.append(capacity())
        shares.append(good / mean(capacities[-2:]))
    figures = over.figures()
    figures["line"] |= {"share_of_capacity": median(shares), "shares": shares}
    rates = {"calm": CALM * capacities[-1], "flooding": FLOOD * capacities[-1]}
    cameras = Drives()
    cameras.add(server, [_stream(server, data, name, rates[name]) for name in rates], seconds)
    return {
        "deadline_ms": DEADLINE_MS,
        "capacity_fps": capacities,
        "service_ms": CORES * 1000 / median(capacities),
        "overload": figures,
        "cameras": {"rates": rates, **cameras.figures()},
    }


def growth(
    server: Service, data: bytes, label: str, folder: Path, first: int, last: int
) -> Figures:
    """Resident memory (MB) after at least `first` frames, after at least `last`, and between, and
    all that is known of it at the end; raw bodies from 8 clients, in bursts of two seconds."""
    request, frames, marks = build("raw", "file", data), 0, list[tuple[int, float]]()
    while frames < last:
        run = wrk(server.url, request, label, CLIENTS, folder, server.cpu_seconds, 2.0)
        if not run["good"]:
            raise RuntimeError("the server gave no good answer in two seconds")
        frames += run["good"]
        if frames >= first:
            marks.append((frames, server.memory()["rss"]))
    return {"marks": marks, "growth_mb": marks[-1][1] - marks[0][1], "last": server.memory()}
