"""Posts frames to a recognition server at their due times, and counts the answers."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np

BURST = 8
LATE_SECONDS = 0.010


@dataclass(frozen=True)
class Frame:
    """One picture ready to post: its class, its serial number and its JPEG bytes."""

    kind: str
    part: str
    body: bytes


@dataclass(frozen=True)
class Answer:
    """The server's answer: a label, or the problem in one line."""

    label: str | None
    probability: float
    problem: str
    milliseconds: float


@dataclass(frozen=True)
class Target:
    """The address to post to. `path` has no query; `query` has its pairs of name and value."""

    url: str
    scheme: str
    host: str
    port: int | None
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    timeout: float

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, which opens with its first request."""
        if self.scheme == "https":
            return http.client.HTTPSConnection(self.host, self.port, timeout=self.timeout)
        return http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)

    def address(self, camera: str, part: str) -> str:
        """Return path and query for one frame."""
        return f"{self.path}?{urlencode([*self.query, ('camera', camera), ('part', part)])}"


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
            f"99th percentile {float(np.percentile(self.milliseconds, 99)):.1f} ms"
        )


def due_times(count: int, rate: float, bursts: bool) -> list[float]:
    """Return the seconds after the start at which each frame is due.

    In bursts, groups of eight come four times as fast and a pause keeps the mean rate.
    """
    if not bursts:
        return [i / rate for i in range(count)]
    return [(i // BURST * BURST + i % BURST / 4) / rate for i in range(count)]


def ask(
    connection: http.client.HTTPConnection, address: str, target: Target, frame: Frame
) -> Answer:
    """Post one frame and read the answer.

    Raises OSError or http.client.HTTPException when there is none, ValueError when it is not
    Lineside's.
    """
    started = time.monotonic()
    connection.request("POST", address, frame.body, target.headers)
    response = connection.getresponse()
    body = response.read()
    took = (time.monotonic() - started) * 1000.0
    try:
        answer = json.loads(body)
        if response.status >= 400:
            error = answer["error"]
            return Answer(
                None, 0.0, f"refused {response.status} {error['code']}: {error['message']}", took
            )
        best = answer["predictions"][0]
        return Answer(str(best["label"]), float(best["probability"]), "", took)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        if response.status >= 400:
            return Answer(None, 0.0, f"refused {response.status} {response.reason}", took)
        raise ValueError(f"status {response.status}, not an answer of Lineside's") from error


def post_one(
    connection: http.client.HTTPConnection, target: Target, camera: str, frame: Frame, tally: Tally
) -> None:
    """Post a frame and count how it ends; the connection is closed after a failure."""
    address = target.address(camera, frame.part)
    reused = connection.sock is not None
    try:
        try:
            answer = ask(connection, address, target, frame)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # The server may have closed an idle connection just as this frame left.
            connection.close()
            if not reused:
                raise
            answer = ask(connection, address, target, frame)
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        tally.lost(target.url, error)
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
    connection = target.connect()
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
        post_one(connection, target, camera, job[1], tally)
    connection.close()


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


def target(
    url: str, api_key: str | None, timeout: float, deadline_ms: float | None = None
) -> Target:
    """Parse an address; without a path, /v1/recognize is used. `timeout` is in seconds.

    deadline_ms: sent with each frame, so that the server answers within it or refuses the frame.
    Raises ValueError if it is no http or https address.
    """
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.hostname:
        raise ValueError(f"{url!r} is not an http or https address")
    headers = {"Content-Type": "image/jpeg", "Connection": "keep-alive"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    query = parse_qsl(split.query)
    if deadline_ms is not None:
        query.append(("deadline_ms", f"{deadline_ms:g}"))
    return Target(
        url,
        split.scheme,
        split.hostname,
        split.port,
        "/v1/recognize" if split.path in ("", "/") else split.path,
        tuple(query),
        headers,
        timeout,
    )
