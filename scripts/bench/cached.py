"""Measures what a cached answer takes beside an empty Flask route that reads the same body.

    python scripts/bench/cached.py [--pairs N] [--redis URL]

One frame over one kept connection, the ways in turn: an empty route (the same HTTP server, no
`Recognizing`), the routes that answer from the cache, and one that computes. Medians in ms, and the
medians of the paired differences from the empty route.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from bench import inputs, latency  # noqa: E402
from bench.clients.forms import build  # noqa: E402
from bench.servers.lineside import Bare, environment, start_server  # noqa: E402
from bench.servers.service import Service, free_port  # noqa: E402

PYTHON = Path(sys.executable)
EMPTY = """
import sys
from flask import Flask, Response, request
from server.http.body.multipart import take_bodies
from server.config.settings import Settings
from server.process.http_server import run

def make(settings):
    app = Flask("empty")
    take_bodies(app, 16_000_000)
    @app.post("/empty")
    def empty():
        request.files.get("file") or request.get_data(cache=False)
        return Response(b'{"label": "%s"}' % sys.argv[2].encode(), content_type="application/json")
    return app

run(Settings(port=int(sys.argv[1])), make, 3)
"""


def start_empty(label: str, folder: Path) -> Service:
    """An empty route behind the HTTP server as we set it up."""
    port = free_port()
    command = [str(PYTHON), "-c", EMPTY, str(port), label]
    url = f"http://127.0.0.1:{port}/empty"
    return Service(command, environment(), ROOT, url, folder / "empty.log")


def report(taken: dict[str, list[float]]) -> None:
    """Prints a line a way."""
    print(f"{'way':28}{'p50 ms':>9}{'p99 ms':>9}{'more than empty':>17}")
    for way, values in taken.items():
        base = taken["empty " + way.split()[1]]
        more = median(a - b for a, b in zip(values, base, strict=True))
        print(f"{way:28}{median(values):9.3f}{quantiles(values, n=100)[98]:9.3f}{more:17.3f}")


def main() -> int:
    """Measures and prints. Exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    parser.add_argument("--redis", default="", help="such as redis://127.0.0.1:6379/0, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineside-bench.") as name, ExitStack() as services:
        folder = Path(name)
        model = inputs.lay_out(args.bundle, folder / "models", exact=False)
        frame = inputs.find_frames(folder, PYTHON)["720p"]
        data = frame.read_bytes()
        with Bare(PYTHON, model.bundle) as bare:
            label = bare.measure(frame, 1.0)["label"]
        several = {form: build(form, "file", data) for form in ("raw", "multipart")}

        def started(service: Service) -> Service:
            services.enter_context(service)
            service.await_answer(several["raw"], label)
            return service

        empty = started(start_empty(label, folder))
        plain = started(start_server(PYTHON, model, folder / "plain.log"))
        cached = started(start_server(PYTHON, model, folder / "cached.log", cache="true"))
        ways = {
            "empty raw": (empty.url, "raw"),
            "empty multipart": (empty.url, "multipart"),
            "/v1/recognize raw": (cached.url, "raw"),
            "/api/recognize_cached multipart": (
                cached.url.replace("/v1/recognize", "/api/recognize_cached"),
                "multipart",
            ),
            "computed raw": (plain.url, "raw"),
        }
        if args.redis:
            other = start_server(
                PYTHON, model, folder / "redis.log", cache="true", cache_url=args.redis
            )
            ways["redis raw"] = (started(other).url, "raw")
        posts: dict[str, Callable[[], object]] = {
            way: latency.keep_alive(url, form, data) for way, (url, form) in ways.items()
        }
        report(latency.measure(posts, args.pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
