"""Everything that happens beside the good frames: swaps, bad input, jobs, cameras, readers."""

import http.client
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from soak import wire
from soak.load import LOST, GoodFrames
from soak.score import Score
from soak.site import BODY_MB, MODEL, OTHER_MODEL, VERSIONS
from soak.snapshots import SnapshotCamera

# A job may take so long. A stream of events has a line at least every two seconds.
JOB_S, EVENTS_S = 120.0, 30.0
# Seconds between two of each; a short run has them more often, so that each comes.
SWAP_S, UNLOAD_S, JOB_EVERY_S, VANISH_S, AWAY_S = 15.0, 45.0, 20.0, 60.0, 6.0
BAD_S, SCRAPE_S, READ_S = 0.5, 5.0, 10.0
READ_PATHS = (
    *("/v1/journal?limit=20", "/v1/journal?verdict=fail&limit=5", "/v1/samples", "/v1/cameras"),
    *("/v1/models", "/v1/outputs", "/v1/now", "/v1/alerts", "/v1/jobs", "/v1/audit"),
)


class Acts:
    """Does all of it in threads of its own, from `start` to `stop`; `score` counts.

    other: a frame of OTHER_MODEL. run_seconds: of the whole run.
    """

    def __init__(
        self,
        good: GoodFrames,
        other: bytes,
        cameras: list[SnapshotCamera],
        score: Score,
        run_seconds: float,
    ) -> None:
        self._good, self._port, self._score = good, good.port, score
        self._other, self._other_label = other, ""
        self._cameras, self._seconds = cameras, run_seconds
        self._ended = threading.Event()
        self._bad = itertools.cycle(self._bad_inputs())
        self._versions = itertools.cycle(reversed(VERSIONS))
        self._paths = itertools.cycle(READ_PATHS)
        self._ways = itertools.cycle((False, True))
        acts: dict[Callable[[], None], float] = {
            self.swap: SWAP_S,
            self.load_and_unload: UNLOAD_S,
            self.job: JOB_EVERY_S,
            self._vanish: VANISH_S,
            self._bad_input: BAD_S,
            self._scrape: SCRAPE_S,
            self._read: READ_S,
        }
        self._threads = [
            threading.Thread(target=self._repeat, args=(act, min(every, run_seconds / 6)))
            for act, every in acts.items()
        ]
        self._threads.append(threading.Thread(target=self._events))

    @property
    def count(self) -> int:
        """Requests that it may have in hand at once."""
        return len(self._threads)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Returns once the last act has ended."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, act: Callable[[], None], every: float) -> None:
        begin = time.monotonic()
        for turn in itertools.count(1):
            if self._ended.wait(max(0.0, begin + (turn - 0.5) * every - time.monotonic())):
                return
            try:
                act()
            except (*LOST, LookupError) as error:
                self._score.fault(f"{act.__name__.strip('_')}: {error!r}")

    def swap(self) -> None:
        """Have the other version serve."""
        body = json.dumps({"version": next(self._versions)}).encode()
        reply = wire.ask(self._port, "POST", f"/v1/models/{MODEL}/activate", body)
        self._score.expect("version activated", reply, 200)

    def load_and_unload(self) -> None:
        """Load another model by a frame for it, and free it again."""
        path = f"/v1/recognize?model={OTHER_MODEL}&camera=other"
        reply = wire.ask(self._port, "POST", path, self._other, "image/jpeg")
        if self._score.expect("model loaded by a frame", reply, 200):
            label = str(reply.json().get("verdict"))
            self._other_label = self._other_label or label
            if label != self._other_label:
                self._score.fault(f"{OTHER_MODEL} says {label}, and {self._other_label} before")
        path = f"/v2/repository/models/{OTHER_MODEL}/unload"
        self._score.expect("model unloaded", wire.ask(self._port, "POST", path, b"{}"), 200)

    def job(self) -> None:
        """Send a job of all good frames, and look at its answers."""
        body, kind = wire.form(list(self._good.files.items()))
        reply = wire.ask(self._port, "POST", "/v1/jobs", body, kind)
        if not self._score.expect("job sent", reply, 202):
            return
        path, until = reply.json()["status_url"], time.monotonic() + JOB_S
        while time.monotonic() < until:
            reply = wire.ask(self._port, "GET", path)
            job = reply.json()
            if reply.status != 200 or job["status"] in ("succeeded", "failed"):
                break
            time.sleep(0.25)
        if not self._score.expect("job ended", reply, 200):
            return
        labels = [
            frame["result"]["predictions"][0]["label"] if frame.get("result") else None
            for frame in job.get("frames") or ()
        ]
        if labels != [frame.label for frame in self._good.frames]:
            self._score.fault(f"a job ended as {job['status']} with {labels}")

    def _vanish(self) -> None:
        """Have a camera go and come back: by turns it refuses connections, or hangs."""
        camera = self._cameras[0]
        camera.vanish(hang=next(self._ways))
        self._ended.wait(min(AWAY_S, self._seconds / 12))
        camera.come_back()
        self._score.act("camera gone and back")

    def _bad_inputs(self) -> Iterator[tuple[str, str, str, bytes, str, tuple[int, ...]]]:
        """Name, method, path, body, type, and the statuses that are right."""
        picture, path, kind = next(iter(self._good.files.values())), "/v1/recognize", "image/jpeg"
        half, middle = picture[: len(picture) // 2], len(picture) // 2
        damaged = picture[:middle] + bytes(400) + picture[middle + 400 :]
        yield "half an image", "POST", path, half, kind, (422,)
        yield "damaged image", "POST", path, damaged, kind, (422,)
        yield "half an image in a form", "POST", path, *wire.form([("a.jpg", half)]), (422,)
        yield "no image", "POST", path, b"no image at all " * 500, kind, (415,)
        yield "empty body", "POST", path, b"", kind, (400,)
        yield "image as JSON", "POST", path, picture, "application/json", (400,)
        yield "image as text", "POST", path, b'{"image_base64": 1}', "application/json", (400,)
        yield "too large", "POST", path, bytes(BODY_MB * 1_000_000 + 100_000), kind, (413,)
        yield "unknown option", "POST", f"{path}?deadline=5", picture, kind, (400,)
        yield "unknown model", "POST", f"{path}?model=none", picture, kind, (404,)
        yield "unknown path", "POST", "/v1/recognise", picture, kind, (404,)
        yield "wrong method", "DELETE", path, b"", kind, (405,)
        yield "cut body", "", path, half, kind, ()

    def _bad_input(self) -> None:
        name, method, path, body, kind, statuses = next(self._bad)
        if method:
            reply = wire.ask(self._port, method, path, body, kind)
            self._score.expect(f"bad: {name}", reply, *statuses)
            return
        whole = wire.request(self._port, path, body + body, kind)
        with socket.create_connection(("127.0.0.1", self._port), wire.TIMEOUT_S) as connection:
            connection.sendall(whole[: -len(body)])
        self._score.act(f"bad: {name}")

    def _scrape(self) -> None:
        reply = wire.ask(self._port, "GET", "/metrics")
        if self._score.expect("scrape", reply, 200) and b"lineside_" not in reply.body:
            self._score.fault("/metrics has no metric")
        self._score.expect("probe", wire.ask(self._port, "GET", "/readyz"), 200)

    def _read(self) -> None:
        path = next(self._paths)
        self._score.expect("page read", wire.ask(self._port, "GET", path), 200)

    def _events(self) -> None:
        """Keeps a stream of events open; the server ends each after a minute."""
        while not self._ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=EVENTS_S)
            try:
                connection.request("GET", "/v1/events")
                answer = connection.getresponse()
                self._score.act("stream of events")
                if answer.status != 200:
                    self._score.fault(f"/v1/events: {answer.status}")
                while not self._ended.is_set() and answer.readline():
                    pass
            except LOST as error:
                self._score.fault(f"/v1/events: {error!r}")
            finally:
                with suppress(OSError):
                    connection.close()
