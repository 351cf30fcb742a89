"""How much faster two workers finish the same jobs than one: they share nothing with the server but
a Redis, and have one interpreter each.

    python scripts/bench/workers.py [--jobs 200] [--rounds 3] [--size 1080p] [--bundle FOLDER]

The workers have answered frames before; they stand still (SIGSTOP) while the jobs are submitted,
and the clock runs from the moment when they go on to the end of the last job. Needs Debian's
redis-server.
"""

import argparse
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The script's own folder gives way to those that its packages lie in.
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]

from bench import inputs  # noqa: E402
from live import LiveServer  # noqa: E402
from workers import LiveWorker, await_that, count_jobs, redis_server, submit  # noqa: E402

WARM_UP = 24


def last_end(data: Path) -> float:
    """When the last job ended, in Unix seconds."""
    with sqlite3.connect(f"file:{data}/jobs.db?mode=ro", uri=True, timeout=10) as db:
        found: float = db.execute("SELECT max(finished) FROM jobs").fetchone()[0]
    db.close()
    return found


def rate(bundle: Path, frame: bytes, count: int, jobs: int) -> float:
    """Jobs a second of `count` workers."""
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as redis:
        shared = {"broker_url": redis.url, "models": bundle.parents[1], "model": bundle.parent.name}
        data = Path(folder) / "server"
        server = LiveServer(data=data, job_workers=0, **shared)
        workers = [LiveWorker(data=Path(folder) / "worker", **shared) for _ in range(count)]
        try:
            server.await_ready()
            for worker in workers:
                worker.await_ready()
            for _ in range(WARM_UP):
                submit(server, frame)
            await_that(lambda: count_jobs(data, "succeeded") == WARM_UP, "the first jobs")
            for worker in workers:
                worker.process.send_signal(signal.SIGSTOP)
            for _ in range(jobs):
                submit(server, frame)
            started = time.time()
            for worker in workers:
                worker.process.send_signal(signal.SIGCONT)
            await_that(lambda: count_jobs(data, "succeeded") == WARM_UP + jobs, "all jobs", 300)
            return jobs / (last_end(data) - started)
        finally:
            for worker in workers:
                worker.stop()
            server.stop()


def main() -> int:
    """Prints the rates in turns, and the ratio of their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", choices=list(inputs.SIZES), default="1080p")
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "parts" / "1")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frames = inputs.find_frames(Path(folder), Path(sys.executable))
        frame = frames[args.size].read_bytes()
        rates: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(args.rounds):
            for count in rates:
                rates[count].append(rate(args.bundle, frame, count, args.jobs))
                print(f"round {turn + 1}, {count} workers: {rates[count][-1]:.1f} jobs/s")
    one, two = (statistics.median(rates[count]) for count in rates)
    print(f"two workers finish {args.jobs} jobs {two / one:.2f} times as fast as one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
