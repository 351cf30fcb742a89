"""Sends the frames of one source to a server: newest first, again until each has its answer."""

import http.client
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from camera_client.exchange import Caller, Reply, Target
from camera_client.frames import Item, Spool, WaitingFrames
from camera_client.report import Tally, show_live
from camera_client.sources import Source

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.25, 10.0
# Longest Retry-After that is waited for.
RETRY_AFTER_MAX_S = 60.0
# Statuses that are the frame's own fault, or would be the same next time.
FINAL = frozenset((400, 405, 411, 413, 415, 422, 500))
ROOM_POLL_S = 0.2


@dataclass(frozen=True)
class SendOptions:
    """camera: the name that frames are sent under. spool: keeps frames while they can't be sent;
    None drops all but the newest. max_age_s: age at which a frame is given up."""

    camera: str
    spool: Spool | None
    max_age_s: float


class CameraClient:
    """Takes frames from `source` in one thread and sends them in another."""

    def __init__(self, source: Source, target: Target, options: SendOptions, tally: Tally) -> None:
        self.tally = tally
        self.stop = threading.Event()
        self._source = source
        self._caller = Caller(target)
        self._options = options
        self._waiting = WaitingFrames(options.spool, self.tally.drop, self.tally.lose)
        self._fault: Exception | None = None

    def run(self) -> None:
        """Send until the source has ended and all is settled, or `stop` is set. Raises OSError if
        the source can't be read, and what else it raised."""
        self.tally.take(self._waiting.in_spool)
        reader = threading.Thread(target=self._read, name="source")
        over = threading.Event()
        display = threading.Thread(
            target=show_live, args=(self.tally, lambda: self._waiting.in_spool, over)
        )
        reader.start()
        display.start()
        try:
            self._send()
        finally:
            self.stop.set()
            reader.join()
            self._waiting.set_aside()
            over.set()
            display.join()
            self._caller.close()
        if self._fault is not None:
            raise self._fault

    def table(self) -> str:
        return self.tally.table(self._waiting.in_spool)

    def _read(self) -> None:
        try:
            for frame in self._source.frames(self.stop):
                while not self._source.is_live and not self._waiting.await_room(ROOM_POLL_S):
                    if self.stop.is_set():
                        return
                self.tally.take()
                self._waiting.put(frame)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self._fault = error
        finally:
            self._waiting.end()

    def _send(self) -> None:
        backoff = BACKOFF_MIN_S
        while not self.stop.is_set() and (item := self._waiting.take()) is not None:
            retry_after = self._try(item)
            if retry_after is None:
                backoff = BACKOFF_MIN_S
                continue
            self._waiting.put_back(item)
            # Many cameras lose one server at the same moment: they come back one after the other.
            self.stop.wait(max(retry_after, backoff * random.uniform(0.5, 1.0)))
            backoff = min(2 * backoff, BACKOFF_MAX_S)

    def _try(self, item: Item) -> float | None:
        """Send one frame. Return None if it is settled, else the seconds to wait at least before
        the next try."""
        frame = item.frame
        age = time.time() - frame.captured
        if age > self._options.max_age_s:
            self._waiting.settled(item)
            self.tally.lose(1, f"a frame is {age:.0f} s old and has no answer")
            return None
        # A server refuses a frame whose time of capture is long ago: those of the spool go without.
        captured = "" if self._options.spool else f"{frame.captured:.3f}"
        address = self._caller.target.address(
            camera=self._options.camera, part=frame.part, captured_at=captured
        )
        try:
            reply = self._caller.post(address, frame.data)
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            self.tally.fail("away", f"no answer from {self._caller.target.url} ({reason})")
            return 0.0
        return self._settle(item, reply)

    def _settle(self, item: Item, reply: Reply) -> float | None:
        code = reply.code or str(reply.status)
        if reply.status == 200 and "verdict" in reply.body:
            kind, right = item.frame.kind, None
            if kind:
                with suppress(ValueError):
                    right = reply.best[0] == kind
            self._waiting.settled(item)
            self.tally.answer(reply.body["verdict"], right, reply.milliseconds)
            return None
        if reply.status == 200:
            self._waiting.settled(item)
            self.tally.refuse("200", "not an answer of Lineside's /v1/recognize")
            return None
        if reply.status in FINAL or not (reply.may_retry or self._options.spool):
            self._waiting.settled(item)
            self.tally.refuse(code, reply.message)
            return None
        self.tally.fail(code, f"the server answers {reply.status} {code}: {reply.message}")
        return min(reply.retry_after_s, RETRY_AFTER_MAX_S)


@contextmanager
def stopping_by_signal(stop: threading.Event) -> Iterator[None]:
    """Set `stop` at SIGINT and SIGTERM instead of ending at once, for as long as the block runs."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
