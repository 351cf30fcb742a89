"""The run from start to verdict."""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from soak import readings, site, verdict, wire
from soak.acts import Acts
from soak.load import LOST, SENDERS, GoodFrames
from soak.readings import Reading
from soak.score import TENTHS, Score
from soak.snapshots import SnapshotCamera

THREADS_S, CAPACITY_S = 4.0, 12.0
READ_S = 5.0
DRAIN_S = 30.0
# Messages that a server holds which does not answer.
UNKNOWN = -1


def run(minutes: float, share: float, folder: Path) -> tuple[dict[str, object], str, bool]:
    """The figures, the tables as text, and whether all bounds hold. share: of the capacity."""
    seconds, score = 60 * minutes, Score()
    models = site.ROOT / "models"
    frame = (models / site.MODEL / "1" / "samples" / "good.jpg").read_bytes()
    other = (models / site.OTHER_MODEL / "1" / "samples" / "scratch-1.jpg").read_bytes()
    cameras = [SnapshotCamera(frame, site.free_port()) for _ in range(2)]
    addresses = {f"pulled-{number}": camera.url for number, camera in enumerate(cameras, 1)}
    try:
        with site.running(folder, addresses) as (server, has_broker):
            good = GoodFrames(server.port, models / site.MODEL / "1" / "samples")
            acts = Acts(good, other, cameras, score, seconds)
            # What is made at its first use is there before the first tenth.
            for act in (acts.job, acts.load_and_unload, acts.swap, acts.swap):
                act()
            # The server has a thread for each request in hand: as many as there will be at most.
            good.capacity(min(THREADS_S, seconds / 8), SENDERS + acts.count)
            capacity = good.capacity(min(CAPACITY_S, seconds / 4))
            rate = share * capacity
            say(f"capacity {capacity:.0f} frames/s; {minutes:g} min at {rate:.0f} frames/s")
            found = _observed(server, good, acts, rate, seconds, score)
            ending = _ending(server, found.worker)
    finally:
        for camera in cameras:
            camera.close()
    table = verdict.rows(score, found.readings, seconds)
    checks = verdict.judge(table, score, ending, minutes)
    figures: dict[str, object] = {
        "minutes": minutes,
        "capacity": round(capacity, 1),
        "rate": round(rate, 1),
        "mqtt": has_broker,
        "tenths": table,
        "checks": [check._asdict() for check in checks],
        "acts": score.acts,
        "refusals": score.refusals,
        "faults": score.faults,
    }
    output = "verdicts to an MQTT broker" if has_broker else "no MQTT broker is installed"
    head = (
        f"{minutes:g} min at {rate:.1f} frames/s, {share:.0%} of {capacity:.1f} frames/s; {output}."
    )
    told = f"{head}\n\n{verdict.text(table, checks, score)}"
    return figures, told, all(check.holds for check in checks)


class _Observed:
    """The readings that were taken while frames were sent. worker: the server's processes at the
    beginning."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.readings: list[Reading] = []


def _observed(
    server: site.Server,
    good: GoodFrames,
    acts: Acts,
    rate: float,
    seconds: float,
    score: Score,
) -> _Observed:
    """Sends the good frames while all else happens, and reads what the server takes."""
    found = _Observed(readings.process_tree(server.pid)[1])
    begin, ended = time.monotonic(), threading.Event()
    every = min(READ_S, seconds / 40)
    looks_in_all = round(seconds / every)

    def look() -> None:
        # In the middle between two looks, so that each tenth has as many.
        while not ended.wait(max(0.0, begin + (len(found.readings) + 0.5) * every - now())):
            at, told = now() - begin, len(found.readings) * TENTHS // looks_in_all
            found.readings.append(readings.read(server.pid, server.data, at))
            if len(found.readings) * TENTHS // looks_in_all > told:
                latencies = score.latencies[told]
                memory = found.readings[-1].memory / verdict.MB
                p99 = verdict.percentile(latencies, 0.99)
                say(
                    f"{at / 60:.1f} min: P99 {p99:.0f} ms, {memory:.0f} MB,"
                    f" {score.fault_count} faults"
                )

    now = time.monotonic
    looks = threading.Thread(target=look)
    looks.start()
    acts.start()
    try:
        good.send_steadily(rate, begin, seconds, score)
    finally:
        ended.set()
        acts.stop()
        looks.join()
    return found


def _ending(server: site.Server, worker: int) -> verdict.Ending:
    """Waits until the outputs have sent all, and stops the server."""
    until, waiting = time.monotonic() + DRAIN_S, UNKNOWN
    while waiting and time.monotonic() < until:
        time.sleep(0.2)
        try:
            outputs = wire.ask(server.port, "GET", "/v1/outputs").json().get("outputs", ())
            waiting = sum(output["waiting"] for output in outputs)
        except LOST:  # it is gone, which the table is to say
            break
    lives = worker in readings.process_tree(server.pid)
    return verdict.Ending(server.stop(), waiting, lives)


def say(text: str) -> None:
    """Tell how far the run is."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None, description: str = "") -> int:
    """Run the command line. Returns 0 if all bounds hold, else 1."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the run (60)")
    parser.add_argument(
        "--share", type=float, default=0.7, help="of the capacity that is sent (0.7)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no table")
    parser.add_argument("--folder", type=Path, help="keep data, models and log here (a new folder)")
    args = parser.parse_args(arguments)
    if args.minutes <= 0 or not 0 < args.share <= 1:
        parser.error("--minutes must be more than 0, and --share more than 0 and at most 1")
    if args.folder:
        args.folder.mkdir(parents=True)
        figures, told, well = run(args.minutes, args.share, args.folder)
    else:
        with tempfile.TemporaryDirectory(prefix="lineside-soak-") as folder:
            figures, told, well = run(args.minutes, args.share, Path(folder))
    print(json.dumps(figures) if args.json else told, flush=True)
    return 0 if well else 1
