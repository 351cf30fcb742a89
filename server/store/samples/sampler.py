"""Chooses the answered frames that are worth a person's look, and keeps them by a thread.

A frame never waits for the disk: the thread that answers it only decides and hands it over.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from server.observe.logs import ProblemLog
from server.recognition.answers import Answer, FrameAnswered
from server.recognition.manifest import VerdictPolicy
from server.recognition.sample import UNHEALTHY, Reason
from server.recognition.tasks.task import SampleWishes, find_task
from server.store.samples.folder import SampleFolder, TooLargeError
from server.system.background import BackgroundQueue

logger = logging.getLogger(__name__)

# Reasons for which a frame that should have been kept was not.
LOSS_REASONS = ("busy", "disk", "too_large", "error")
MINUTE_S = 60.0
# Bytes of the frames that wait for the disk; a larger frame waits alone.
WAITING_BYTES_MAX = 32_000_000
WAITING_FRAMES_MAX = 1000
# Seconds for which waiting frames are kept when the server stops.
STOP_TIMEOUT_S = 5.0
# A frame that waits for the disk, why it is kept, and when it came.
WaitingFrame: TypeAlias = tuple[FrameAnswered, Reason, float]


class Policy(SampleWishes, frozen=True, kw_only=True):
    """The frames that are kept: those whose picture has a problem, those of `SampleWishes`, and a
    random `share` of all others; never more than `per_minute` in any minute."""

    share: float = 0.0
    per_minute: int = 10

    def reason(self, answer: Answer, verdict: VerdictPolicy | None, draw: float) -> Reason | None:
        """Returns why a frame is kept, None if it is not. verdict: the policy in force, if there is
        one. draw: a random number of 0..1, 1 excluded."""
        if answer.health is not None and not answer.health.ok:
            return UNHEALTHY
        task = find_task(answer.task)
        reasons = (task.sample_reason(part, self, verdict) for part in answer.parts())
        reason = next(filter(None, reasons), None)
        return reason or ("random" if draw < self.share else None)


class Sampler:
    """A listener of answered frames that keeps those `policy` names in `folder`.

    policy_of: the verdict policy of the version of a model that serves. on_kept is called with each
    frame's reason; on_lost, with the reason why one that should have been kept was not: one of
    LOSS_REASONS.
    `_lock` guards `_times`, when the last frames came, in seconds of `clock`, and
    `_waiting_bytes`, of the frames that wait for the disk.
    """

    def __init__(
        self,
        folder: SampleFolder,
        policy: Policy,
        policy_of: Callable[[str, int], VerdictPolicy | None],
        on_kept: Callable[[str], object],
        on_lost: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.folder = folder
        self._policy = policy
        self._policy_of = policy_of
        self._on_kept = on_kept
        self._on_lost = on_lost
        self._clock = clock
        self._draw = draw
        self._lock = threading.Lock()
        self._times: deque[float] = deque(maxlen=policy.per_minute)
        self._waiting_bytes = 0
        self._opened = False
        self._problem = ProblemLog("samples can't be kept", "samples are kept again")
        self._queue = BackgroundQueue("samples", self._work, capacity=WAITING_FRAMES_MAX)
        self._queue.wake()

    def __call__(self, event: FrameAnswered) -> None:
        """Hands the frame over if it is to be kept. Those without an image, and those that are
        answered from the cache, which were here before, are not."""
        if event.data is None or event.cached:
            return
        now = self._clock()
        with self._lock:
            has_room = self._has_room(now)
        if not has_room:  # before anything is asked that only a frame to be kept needs
            return
        verdict = self._policy_of(event.answer.model, event.answer.version)
        reason = self._policy.reason(event.answer, verdict, self._draw())
        if reason is None:
            return
        size = len(event.data)
        with self._lock:
            if not self._has_room(now) or self._queue.closed:
                return
            self._times.append(now)
            fits = not self._waiting_bytes or self._waiting_bytes + size <= WAITING_BYTES_MAX
            if fits and self._queue.submit((event, reason, now)):
                self._waiting_bytes += size
                return
        self._on_lost("busy")

    def _has_room(self, now: float) -> bool:
        """Returns whether no minute has too many with a frame at `now`; under the lock."""
        times = self._times
        return len(times) < self._policy.per_minute or now - times[0] >= MINUTE_S

    def close(self) -> None:
        """Keeps the frames that wait, for STOP_TIMEOUT_S seconds at most, and ends the thread."""
        self._queue.close(STOP_TIMEOUT_S)

    def _work(self, frames: deque[WaitingFrame]) -> None:
        if not self._opened:
            self._opened = True
            try:
                self.folder.open()
            except OSError as error:
                self._failed(error)
        while frames:
            event, reason, arrived_at = frames.popleft()
            with self._lock:
                self._waiting_bytes -= len(event.data or b"")
            try:
                self._keep(event, reason, arrived_at)
            except Exception:
                # Else the frames after it would wait for the next turn.
                fields = self._fields() | {"request_id": event.request_id}
                logger.exception("a sample can't be kept", extra={"fields": fields})
                self._on_lost("error")

    def _keep(self, event: FrameAnswered, reason: Reason, arrived_at: float) -> None:
        try:
            added = self.folder.add(event, reason)
        except TooLargeError:
            self._on_lost("too_large")
        except OSError as error:
            self._failed(error)
            self._on_lost("disk")
        else:
            if added:
                self._on_kept(reason)
                self._problem.went_well(**self._fields())
                return
            # Its bytes were there already, so it does not count for its minute. Its time is no
            # longer there if later frames have pushed it out: its minute is over.
            with self._lock, suppress(ValueError):
                self._times.remove(arrived_at)

    def _failed(self, error: OSError) -> None:
        self._problem.failed(error.strerror or str(error), **self._fields())

    def _fields(self) -> dict[str, str]:
        return {"folder": str(self.folder.folder)}
