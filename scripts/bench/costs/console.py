"""Frames a second with no console open, with one and with ten, in close turns.

    python scripts/bench/costs/console.py [--rounds N] [--seconds S] [--bundle FOLDER]

One server takes wrk's load (8 clients, frames of one camera of 1280x720) in each turn, while so
many consoles are open as `bench.clients.consoles` opens them, in a process of its own on the same
machine. The order of the turns changes from round to round. The medians within a round count: the
ratio of frames a second, which the consoles' own process has a part in; the ratio of the server's
CPU time a frame; and the CPU time that the consoles add, as a share of all cores. The last one says
what a full machine loses, also if other programs take a part of it. Needs wrk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parents[3]
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts")]

from bench import inputs  # noqa: E402
from bench.clients.forms import build  # noqa: E402
from bench.clients.load import Figures, wrk  # noqa: E402
from bench.servers.lineside import Bare, environment, start_server  # noqa: E402

CLIENTS, CAMERA = 8, "gate"
COUNTS = (0, 1, 10)
PYTHON = Path(sys.executable)


@contextmanager
def consoles(url: str, count: int) -> Iterator[Figures]:
    """`count` open consoles; what came to them is in the figures once they are closed."""
    figures: Figures = {}
    if count == 0:
        yield figures
        return
    command = [str(PYTHON), "-m", "bench.clients.consoles", url, str(count), CAMERA]
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield figures
    output, _ = process.communicate()
    figures.update(json.loads(output))


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=6, help="length of each turn")
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    args = parser.parse_args()
    taken: dict[int, list[Figures]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory(prefix="lineside-bench.") as name:
        folder = Path(name)
        model = inputs.lay_out(args.bundle, folder / "models", exact=False)
        frame = inputs.find_frames(folder, PYTHON)["720p"]
        request = build("raw", "file", frame.read_bytes())
        with Bare(PYTHON, model.bundle) as bare:
            label = bare.measure(frame, 1.0)["label"]
        with start_server(PYTHON, model, folder / "server.log") as server:
            server.await_answer(request, label)
            url = f"{server.url}?camera={CAMERA}"
            cpu = server.cpu_seconds
            wrk(url, request, label, CLIENTS, folder, cpu, 2)
            for number in range(args.rounds):
                for count in COUNTS[number % 3 :] + COUNTS[: number % 3]:
                    with consoles(server.url, count) as heard:
                        figures = wrk(url, request, label, CLIENTS, folder, cpu, args.seconds)
                    taken[count].append({**figures, **heard})
    for count, runs in taken.items():
        fps, ms = (median(run[key] for run in runs) for key in ("fps", "cpu_ms"))
        line = f"{count:2} consoles: {fps:6.1f} frames/s, {ms:5.2f} ms of CPU a frame"
        if count:
            each = [run[key] / count for key in ("events", "pictures") for run in runs]
            events, pictures = median(each[: len(runs)]), median(each[len(runs) :])
            line += f"; each heard {events:.0f} events, {pictures:.0f} pictures in {args.seconds} s"
        print(line)
    cores = len(os.sched_getaffinity(0))
    for count in COUNTS[1:]:
        pairs = list(zip(taken[count], taken[0], strict=True))
        rows = {f"ratio of {key}": [a[key] / b[key] for a, b in pairs] for key in ("fps", "cpu_ms")}
        rows[f"added CPU, share of {cores} cores"] = [
            (a["cpu_ms"] - b["cpu_ms"]) * a["fps"] / 1000 / cores for a, b in pairs
        ]
        for text, values in rows.items():
            low, _, high = quantiles(values, n=4)
            print(
                f"{count:2} consoles, {text}: {median(values):.3f}"
                f" (quartiles {low:.3f} to {high:.3f})"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
