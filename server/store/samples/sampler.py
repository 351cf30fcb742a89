"""Which answered frames are worth a person's look, and the thread that keeps them.

A frame never waits for the disk: the thread that answers it only decides and hands it over.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec

from server.recognition.answers import Answer, FrameAnswered
from server.recognition.manifest import Manifest
from server.recognition.sample import Reason
from server.store.samples.folder import SampleFolder, TooLargeError

logger = logging.getLogger(__name__)

# Why a frame that should have been kept was not.
LOST = ("busy", "disk", "too_large", "error")
MINUTE = 60.0
# Of frames that wait for the disk; one larger waits alone.
MOST_WAITING_BYTES = 32_000_000
LONGEST_STOP = 5.0


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Which frames are kept.

    labels: those whose best label is one of these. margin: those whose best probability is at
    most so far from the least one of the bundle's verdict policy. below: those whose best
    probability is less. share: of all others, at random. per_minute: never more in any minute.
    """

    labels: frozenset[str] = frozenset()
    margin: float = 0.0
    below: float = 0.0
    share: float = 0.0
    per_minute: int = 10

    def reason(self, answer: Answer, least: float | None, draw: float) -> Reason | None:
        """Why a frame is kept, None where it is not. least: the verdict policy's probability, if
        there is one. draw: a random number of 0..1, 1 excluded."""
        probability = answer.best.probability
        if answer.best.label in self.labels:
            return "label"
        if least is not None and self.margin and abs(probability - least) <= self.margin:
            return "threshold"
        if probability < self.below:
            return "uncertain"
        return "random" if draw < self.share else None


class Sampler:
    """A listener of answered frames that keeps those `policy` names in `folder`.

    manifest_of: the manifest of the version of a model that serves. on_kept is told each frame's
    reason; on_lost, why one that should have been kept was not: one of LOST.
    `_changed` guards the queue, each frame with when it came, and the times of the last frames, in
    seconds of `clock`.
    """

    def __init__(
        self,
        folder: SampleFolder,
        policy: Policy,
        manifest_of: Callable[[str, int], Manifest | None],
        on_kept: Callable[[str], object],
        on_lost: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.folder, self._policy, self._manifest_of = folder, policy, manifest_of
        self._on_kept, self._on_lost = on_kept, on_lost
        self._clock, self._draw = clock, draw
        self._changed = threading.Condition()
        self._times: deque[float] = deque(maxlen=policy.per_minute)
        self._waiting: deque[tuple[FrameAnswered, Reason, float]] = deque()
        self._waiting_bytes = 0
        self._stopping = self._failing = False
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
        self._thread.start()

    def __call__(self, seen: FrameAnswered) -> None:
        """Hands the frame over if it is to be kept. Those without an image, and those that are
        answered from the cache, which were here before, are not."""
        if seen.data is None or seen.cached:
            return
        now = self._clock()
        with self._changed:
            room = self._room(now)
        if not room:  # before anything is asked that only a frame to be kept needs
            return
        manifest = self._manifest_of(seen.answer.model, seen.answer.version)
        policy = manifest.verdict if manifest else None
        least = policy.min_probability if policy else None
        reason = self._policy.reason(seen.answer, least, self._draw())
        if reason is None:
            return
        size = len(seen.data)
        with self._changed:
            if not self._room(now) or self._stopping:
                return
            self._times.append(now)
            fits = not self._waiting or self._waiting_bytes + size <= MOST_WAITING_BYTES
            if fits:
                self._waiting.append((seen, reason, now))
                self._waiting_bytes += size
                self._changed.notify()
        if not fits:
            self._on_lost("busy")

    def _room(self, now: float) -> bool:
        """Whether one frame more at `now` leaves no minute with too many; under the lock."""
        times = self._times
        return len(times) < self._policy.per_minute or now - times[0] >= MINUTE

    def close(self) -> None:
        """Keeps what waits, for LONGEST_STOP seconds at most, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(LONGEST_STOP)

    def _run(self) -> None:
        try:
            self.folder.open()
        except OSError as error:
            self._failed(error)
        while (item := self._next()) is not None:
            try:
                self._keep(*item)
            except Exception:
                # Else no later frame would be kept, and nothing would tell.
                fields = self._fields() | {"request_id": item[0].request_id}
                logger.exception("a sample can't be kept", extra={"fields": fields})
                self._on_lost("error")

    def _next(self) -> tuple[FrameAnswered, Reason, float] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if not self._waiting:
                return None
            seen, reason, came = self._waiting.popleft()
            self._waiting_bytes -= len(seen.data or b"")
            return seen, reason, came

    def _keep(self, seen: FrameAnswered, reason: Reason, came: float) -> None:
        try:
            kept = self.folder.add(seen, reason)
        except TooLargeError:
            self._on_lost("too_large")
            return
        except OSError as error:
            self._failed(error)
            self._on_lost("disk")
            return
        if not kept:
            self._give_back(came)
            return
        self._on_kept(reason)
        if self._failing:
            self._failing = False
            logger.info("samples are kept again", extra={"fields": self._fields()})

    def _give_back(self, came: float) -> None:
        """Has a frame that was there already not count for its minute."""
        # No longer there where later frames have pushed it out: its minute is over.
        with self._changed, suppress(ValueError):
            self._times.remove(came)

    def _failed(self, error: OSError) -> None:
        """Says so once, until a frame was kept again; recognition goes on."""
        if not self._failing:
            fields = self._fields() | {"reason": error.strerror or str(error)}
            logger.error("samples can't be kept", extra={"fields": fields})
        self._failing = True

    def _fields(self) -> dict[str, str]:
        return {"folder": str(self.folder.folder)}
