"""Frames a second with the journal and without it, in close turns, and whether all have a row.

    python scripts/bench/journal.py [--frames N] [--bundle FOLDER] [--form raw]

Two servers of the same settings, one with journal = false, take wrk's load in turns (8 clients),
the first of each pair by turns too; the other is idle meanwhile. The median of the pairs' ratios
counts. Ends when the one with the journal has answered N frames; then its rows are counted by
`python -m server journal`. Needs wrk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[2]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from bench import inputs  # noqa: E402
from bench.clients.forms import FORMS, Request, build  # noqa: E402
from bench.clients.load import Figures, wrk  # noqa: E402
from bench.servers.lineside import Bare, environment, start_server  # noqa: E402
from bench.servers.service import Service  # noqa: E402

CLIENTS = 8
PYTHON = Path(sys.executable)


def answered(url: str) -> int:
    """Frames that the server at `url` has answered with 200."""
    with urllib.request.urlopen(url.replace("/v1/recognize", "/metrics"), timeout=60) as page:
        for line in page.read().decode().splitlines():
            if line.startswith('lineside_requests_total{route="/v1/recognize",status="200"}'):
                return int(float(line.split()[-1]))
    return 0


def rows(data: Path) -> int:
    """Rows of answered frames in the journal of the folder `data`, read as a user would."""
    command = [str(PYTHON), "-m", "server", "journal", "--data", str(data), "--status", "200"]
    done = subprocess.run(
        [*command, "--format", "jsonl"],
        cwd=ROOT,
        env=environment(),
        check=True,
        capture_output=True,
    )
    return done.stdout.count(b"\n")


def compare(
    both: dict[str, Service], request: Request, label: str, folder: Path, frames: int, seconds: int
) -> dict[str, list[Figures]]:
    """Rounds of load on the servers `with` and `without` until the first has answered `frames`."""
    taken: dict[str, list[Figures]] = {name: [] for name in both}
    for service in both.values():
        wrk(service.url, request, label, CLIENTS, folder, service.cpu_seconds, 2)
    turn = 0
    while answered(both["with"].url) < frames:
        for name in sorted(both, reverse=bool(turn % 2)):
            service = both[name]
            taken[name].append(
                wrk(service.url, request, label, CLIENTS, folder, service.cpu_seconds, seconds)
            )
        turn += 1
    return taken


def main() -> int:
    """Measures and prints. Exit code 0 where every answer has its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    parser.add_argument("--form", choices=FORMS, default="raw")
    parser.add_argument("--frame", type=Path, help="a JPEG; else one of 720p")
    parser.add_argument("--seconds", type=int, default=3, help="length of each measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lineside-bench.") as name:
        folder = Path(name)
        model = inputs.lay_out(args.bundle, folder / "models", exact=False)
        frame = args.frame or inputs.find_frames(folder, PYTHON)["720p"]
        request = build(args.form, "file", frame.read_bytes())
        with Bare(PYTHON, model.bundle) as bare:
            label = bare.measure(frame, 1.0)["label"]
        with (
            start_server(PYTHON, model, folder / "with.log") as one,
            start_server(PYTHON, model, folder / "without.log", journal="false") as other,
        ):
            both = {"with": one, "without": other}
            for service in both.values():
                service.await_answer(request, label)
            taken = compare(both, request, label, folder, args.frames, args.seconds)
            count = answered(one.url)
        kept = rows(folder / "with.data")
    ratios = {
        key: [a[key] / b[key] for a, b in zip(taken["with"], taken["without"], strict=True)]
        for key in ("fps", "cpu_ms")
    }
    low, _, high = quantiles(ratios["fps"], n=4)
    print(f"{count} frames answered, {kept} rows in the journal")
    for way, runs in taken.items():
        fps, cpu = (median(run[key] for run in runs) for key in ("fps", "cpu_ms"))
        print(f"{way:8} {fps:8.1f} frames/s {cpu:6.2f} ms of CPU a frame")
    print(
        f"ratio of {len(ratios['fps'])} pairs: frames/s {median(ratios['fps']):.3f}"
        f" (quartiles {low:.3f} to {high:.3f}), CPU {median(ratios['cpu_ms']):.3f}"
    )
    print(json.dumps({"ratios": ratios["fps"]}))
    return 0 if kept == count else 1


if __name__ == "__main__":
    sys.exit(main())
