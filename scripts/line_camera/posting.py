"""Posts frames to a recognition server at their due times, and counts the answers."""

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from camera_client.exchange import Caller, Target
from camera_client.frames import Frame
from camera_client.report import percentile

BURST = 8
LATE_SECONDS = 0.010


@dataclass(frozen=True)
class Answer:
    """The server's answer: a label, or the problem in one line."""

    label: str | None
    probability: float
    problem: str
    milliseconds: float


@dataclass
class Tally:
    """Counts how the frames ended; `lock` guards every field and the lines printed.

    deadline_ms: an answer that takes longer is counted as too late; None counts none.
    names_cameras: each line begins with the frame's camera.
    """

    deadline_ms: float | None = None
    names_cameras: bool = False
    right: int = 0
    wrong: int = 0
    refused: int = 0
    too_late: int = 0
    failed: int = 0
    late: int = 0
    outage: int = 0
    milliseconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, frame: Frame, answer: Answer, camera: str) -> None:
        """Count and print one answer, a refusal included."""
        with self.lock:
            if self.outage:
                print(f"answers again, {self.outage} frames lost", flush=True)
                self.outage = 0
            head = f"{frame.part} {frame.kind:12} ->"
            if self.names_cameras:
                head = f"{camera} {head}"
            if self.deadline_ms is not None and answer.milliseconds > self.deadline_ms:
                self.too_late += 1
            if answer.label is None:
                self.refused += 1
                print(f"{head} {answer.problem} {answer.milliseconds:.1f} ms", flush=True)
                return
            right = answer.label == frame.kind
            self.right += right
            self.wrong += not right
            self.milliseconds.append(answer.milliseconds)
            print(
                f"{head} {answer.label:12} {answer.probability:.2f} "
                f"{'right' if right else 'WRONG'} {answer.milliseconds:.1f} ms",
                flush=True,
            )

    def lost(self, url: str, error: Exception) -> None:
        """Count a frame without an answer; print a line when an outage begins."""
        with self.lock:
            self.failed += 1
            if not self.outage:
                print(
                    f"no answer from {url} ({str(error) or type(error).__name__}); still trying",
                    flush=True,
                )
            self.outage += 1

    def summary(self) -> str:
        """Format counts and latencies as one line."""
        counts = (
            f"right {self.right}, wrong {self.wrong}, refused {self.refused}, "
            f"failed {self.failed}, sent late {self.late}"
        )
        if self.deadline_ms is not None:
            counts += f", later than {self.deadline_ms:g} ms {self.too_late}"
        if not self.milliseconds:
            return f"{counts}; no latency to report"
        return (
            f"{counts}; latency median {median(self.milliseconds):.1f} ms, "
            f"99th percentile {percentile(self.milliseconds, 99):.1f} ms"
        )


def due_times(count: int, rate: float, bursts: bool) -> list[float]:
    """Return the seconds after the start at which each frame is due.

    In bursts, groups of eight come four times as fast and a pause keeps the mean rate.
    """
    if not bursts:
        return [i / rate for i in range(count)]
    return [(i // BURST * BURST + i % BURST / 4) / rate for i in range(count)]


def ask(caller: Caller, camera: str, frame: Frame) -> Answer:
    """Post one frame and read the answer.

    Raises OSError or http.client.HTTPException if there is none, ValueError if it is not
    Lineside's.
    """
    reply = caller.post(caller.target.address(camera=camera, part=frame.part), frame.data)
    if reply.status >= 400:
        cause = f"{reply.code}: {reply.message}" if reply.code else reply.message
        return Answer(None, 0.0, f"refused {reply.status} {cause}", reply.milliseconds)
    label, probability = reply.best
    return Answer(label, probability, "", reply.milliseconds)


def post_one(caller: Caller, camera: str, frame: Frame, tally: Tally) -> None:
    """Post a frame and count how it ends."""
    try:
        answer = ask(caller, camera, frame)
    except (OSError, http.client.HTTPException, ValueError) as error:
        caller.close()
        tally.lost(caller.target.url, error)
    else:
        tally.answered(frame, answer, camera)


def _deliver(
    work: Iterator[tuple[float, Frame]],
    started: float,
    target: Target,
    camera: str,
    tally: Tally,
    stop: threading.Event,
) -> None:
    caller = Caller(target)
    while not stop.is_set():
        with tally.lock:
            job = next(work, None)
        if job is None:
            break
        wait = started + job[0] - time.monotonic()
        if wait > 0 and stop.wait(wait):
            break
        if wait < -LATE_SECONDS:
            with tally.lock:
                tally.late += 1
        post_one(caller, camera, job[1], tally)
    caller.close()


def post(
    made: Sequence[Frame],
    due: Sequence[float],
    target: Target,
    cameras: Sequence[str],
    connections: int,
    deadline_ms: float | None = None,
) -> Tally:
    """Post every frame from every camera at its due time; Ctrl-C ends early. Returns the counts.

    due: seconds after the start, for each frame. The cameras' frames are spread over the time
    between two of them. connections: of each camera. deadline_ms: as in `Tally`.
    """
    tally, stop = Tally(deadline_ms, len(cameras) > 1), threading.Event()
    between = due[1] - due[0] if len(due) > 1 else 0.0
    started = time.monotonic()
    threads = []
    for number, camera in enumerate(cameras):
        offset = between * number / len(cameras)
        work = iter([(offset + when, frame) for when, frame in zip(due, made, strict=True)])
        threads += [
            threading.Thread(target=_deliver, args=(work, started, target, camera, tally, stop))
            for _ in range(connections)
        ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stop.set()
        for thread in threads:
            thread.join()
    return tally
