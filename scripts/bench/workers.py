"""Measures how much faster two workers finish the same jobs than one: they share nothing with the
server but a Redis, and have one interpreter each.

    python scripts/bench/workers.py [--jobs 200] [--rounds 3] [--size 1080p] [--bundle FOLDER]

The workers have answered frames before; they stand still (SIGSTOP) while the jobs are submitted,
and the clock runs from the moment when they go on to the end of the last job. The CPU time tells
what the ratio could be where nothing else runs: two cores do the work of two workers and that of
the server and Redis beside. Needs Debian's redis-server.
"""

import argparse
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The script's own folder gives way to those that its packages lie in.
sys.path[0:1] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from job_workers import LiveWorker, await_that, count_jobs, redis_server, submit  # noqa: E402
from server_process import LiveServer  # noqa: E402

from bench import inputs  # noqa: E402

WARM_UP = 24


def last_end(data: Path) -> float:
    """Return when the last job ended, in Unix seconds."""
    with sqlite3.connect(f"file:{data}/jobs.db?mode=ro", uri=True, timeout=10) as db:
        found: float = db.execute("SELECT max(finished) FROM jobs").fetchone()[0]
    db.close()
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has taken (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate(bundle: Path, frame: bytes, count: int, jobs: int) -> tuple[float, float, float]:
    """Jobs a second of `count` workers, and milliseconds of CPU a job: of the workers, and of
    server and Redis."""
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
            pids = [worker.process.pid for worker in workers]
            others = [server.worker_pid(), redis.process.pid]
            before = sum(map(cpu, pids)), sum(map(cpu, others))
            started = time.time()
            for worker in workers:
                worker.process.send_signal(signal.SIGCONT)
            await_that(lambda: count_jobs(data, "succeeded") == WARM_UP + jobs, "all jobs", 300)
            after = sum(map(cpu, pids)), sum(map(cpu, others))
            work, rest = ((b - a) / jobs * 1000 for a, b in zip(before, after, strict=True))
            return jobs / (last_end(data) - started), work, rest
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
        found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
        for turn in range(args.rounds):
            for count in found:
                found[count].append(rate(args.bundle, frame, count, args.jobs))
                jobs, work, rest = found[count][-1]
                print(
                    f"round {turn + 1}, {count} workers: {jobs:.1f} jobs/s; CPU a job: workers"
                    f" {work:.1f} ms, server and Redis {rest:.1f} ms"
                )
    one, two = (statistics.median(row[0] for row in found[count]) for count in found)
    print(f"two workers finish {args.jobs} jobs {two / one:.2f} times as fast as one")
    alone = statistics.median(row[1] for row in found[1])
    work, rest = (statistics.median(row[i] for row in found[2]) for i in (1, 2))
    print(f"by CPU time, two cores with nothing else to do allow {2 * alone / (work + rest):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
