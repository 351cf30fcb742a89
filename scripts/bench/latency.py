"""Measures what HTTP adds to one frame: the same frame in process and over a kept connection, in
turn.

    python -m bench.latency MODELS URL FRAME PAIRS

MODELS is the folder of bundles that the server at URL serves with its default settings. In process
the frame goes through the model as that server loads it, so that it has the same threads. Prints
one JSON object: medians in ms, and the medians of the differences between neighbours.
"""

import json
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

from bench.clients import answers
from bench.clients.forms import build
from bench.servers.bare import Steps
from server.config import load as config_reading
from server.engine import make_store
from server.observe.metrics import Metrics
from server.recognition.admission import Admission
from server.recognition.answers import Options
from server.recognition.interpreter import InterpreterPool
from server.recognition.recognizer import Recognizer
from server.system import process

WARM_UP = 20


def load(models: str) -> Recognizer:
    """The default model of a folder, as the server with its default settings loads it."""
    settings = config_reading.load({"LINESIDE_MODELS": models})
    store = make_store(settings, Metrics(), Admission(settings.slots, settings.max_waiting))
    model = store.load(store.default)
    if not isinstance(model, Recognizer):
        raise TypeError(f"{store.default} takes tensors; the benchmark posts frames")
    return model


def keep_alive(url: str, form: str, data: bytes) -> Callable[[], object]:
    """Posts the frame over one connection that stays open; raises RuntimeError unless it is 200."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    wire = build(form, "file", data).wire(parts.path, f"{address[0]}:{address[1]}")
    connection = socket.create_connection(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def post() -> None:
        connection.sendall(wire)
        status = answers.read(connection).status
        if status != 200:
            raise RuntimeError(f"{url} answered {status}")

    return post


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every way in every round; the ways take turns in an order of chance, since
    one that follows another of the same process finds its model in the processor's caches."""
    names, chance = list(ways), random.Random(1)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + WARM_UP):
        for name in chance.sample(names, len(names)):
            start = time.perf_counter()
            ways[name]()
            if number >= WARM_UP:
                taken[name].append((time.perf_counter() - start) * 1000)
    return taken


def summary(taken: dict[str, list[float]]) -> dict[str, object]:
    """Medians and 99th percentiles by way, and the medians of the paired differences from each
    in-process way."""
    out: dict[str, object] = {}
    for name, values in taken.items():
        out[name] = {"p50": median(values), "p99": quantiles(values, n=100)[98]}
    for form in ("raw", "multipart"):
        for inside in ("recognize", "steps"):
            pairs = zip(taken[form], taken[inside], strict=True)
            out[f"added_{form}_over_{inside}"] = median(a - b for a, b in pairs)
    return out


def main(models: str, url: str, frame: Path, rounds: int) -> None:
    """Measures and prints."""
    process.configure_process()
    recognizer, data, options = load(models), frame.read_bytes(), Options()
    steps = Steps(recognizer.bundle, recognizer.pool, exact=False)
    alone = Steps(
        recognizer.bundle, InterpreterPool(recognizer.bundle.model_path, 1, 1), exact=False
    )
    ways: dict[str, Callable[[], object]] = {
        "recognize": lambda: recognizer.recognize(data, options),
        "steps": lambda: steps.run(data, alone=True),
        "one_thread": lambda: alone.run(data),
        "raw": keep_alive(url, "raw", data),
        "multipart": keep_alive(url, "multipart", data),
    }
    print(json.dumps(summary(measure(ways, rounds))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
