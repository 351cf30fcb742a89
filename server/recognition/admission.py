"""Who may work on a frame now, who waits, and who is refused at once.

As many frames are worked on as there are slots. Beyond them a bounded number waits; a frame that
cannot be answered by its deadline is refused rather than made to wait for nothing; cameras take
turns, so that one that floods does not starve another; and where asked, a camera's newer frame
takes the place of its waiting one.

A frame that finds a slot free is worked on by the thread that brought it. Those that wait are
worked on by threads of the slots' own, one after the other: waking the thread of each frame
instead would leave a core without work for as long as that takes, every time.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from server.errors import (
    DeadlineExceededError,
    LinesideError,
    OverloadedError,
    SupersededError,
)

# A frame is let wait only where its deadline leaves a quarter more than the wait is expected to
# take: refused at its deadline it would have waited for nothing. A shorter queue keeps the slots
# as busy as a longer one.
CAUTION = 1.25

# Weight of the newest frame in a running estimate: about 20 frames' memory.
NEWEST = 0.05
# Seconds for which an estimate is believed after its last frame. Without an end, one estimate
# longer than any deadline would refuse every frame, and so never be corrected.
BELIEVED = 1.0
# Cameras whose own time is known, those last seen: names come from clients.
MOST_CAMERAS = 256

T = TypeVar("T")
# What is to be done with a slot; it is told the seconds that were waited for it.
Work = Callable[[float], T]


class Estimate:
    """A running mean of seconds; `measured` is when it was last brought up to date."""

    __slots__ = ("measured", "seconds")

    def __init__(self) -> None:
        self.seconds, self.measured = 0.0, -math.inf

    def learn(self, took: float, now: float) -> None:
        # Asked of the moment when this frame came: one that took long is no reason to forget what
        # was known before it, and to refuse all that come after it.
        weight = NEWEST if self.believed(now - took) else 1.0
        self.seconds += (took - self.seconds) * weight
        self.measured = now

    def believed(self, now: float) -> bool:
        return now - self.measured < BELIEVED


class ServiceTimes:
    """Of all frames and of each camera's own.

    Cameras differ in the size of their pictures and in the model they ask for: one whose frames
    are slow must not have the quick frames of another refused.
    """

    def __init__(self) -> None:
        self._all = Estimate()
        self._own: OrderedDict[str, Estimate] = OrderedDict()

    @property
    def mean(self) -> float:
        """Seconds a frame, of all cameras; 0 before the first."""
        return self._all.seconds

    def known(self, camera: str, now: float) -> float | None:
        """Seconds a frame of `camera`; None where none was answered of late."""
        own = self._own.get(camera)
        return own.seconds if own is not None and own.believed(now) else None

    def likely(self, camera: str, now: float) -> float:
        """Seconds a frame of `camera`, or of all where that is not known."""
        known = self.known(camera, now)
        return self.mean if known is None else known

    def learn(self, camera: str, took: float, now: float) -> None:
        """A frame of `camera` held a slot for `took` seconds until `now`."""
        self._all.learn(took, now)
        own = self._own.setdefault(camera, Estimate())
        own.learn(took, now)
        self._own.move_to_end(camera)
        if len(self._own) > MOST_CAMERAS:
            self._own.popitem(last=False)


class Waiter(Generic[T]):
    """One waiting frame. `done` is held until its `result` or its `error` is there; `queued` until
    it is taken from the queue.

    A plain lock is an event of one waiter, at a fifth of the work of threading.Event.
    """

    __slots__ = ("asked", "camera", "deadline", "done", "error", "queued", "result", "work")

    def __init__(self, work: Work[T], camera: str, deadline: float, asked: float) -> None:
        self.work, self.camera, self.deadline, self.asked = work, camera, deadline, asked
        self.done = threading.Lock()
        self.done.acquire()
        self.queued = True
        self.result: T | None = None
        self.error: BaseException | None = None

    def refuse(self, error: LinesideError) -> None:
        self.queued = False
        self.error = error
        self.done.release()


class Admission:
    """Slots and the queue before them.

    `_lock` guards all that follows it. `_queues` holds the waiting tickets by camera, the camera
    whose turn is next first. `_given` counts slots that were handed to the threads of the slots
    and not yet taken up. Times are seconds of `clock`.
    """

    def __init__(
        self, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots, self.max_waiting, self._clock = slots, max_waiting, clock
        self._lock = threading.Lock()
        self._handed = threading.Condition(self._lock)
        self._given = self._resting = self._threads = 0
        self._busy = 0
        self._waiting = 0
        self._queues: OrderedDict[str, deque[Waiter[Any]]] = OrderedDict()
        self._times = ServiceTimes()

    @property
    def waiting(self) -> int:
        """Frames waiting at this moment."""
        return self._waiting

    @property
    def busy(self) -> int:
        """Frames being worked on at this moment."""
        return self._busy

    @property
    def alone(self) -> bool:
        """Whether at most one frame is in hand, so that it may use all cores."""
        return self._busy <= 1 and self._waiting == 0

    @property
    def crowded(self) -> bool:
        """Whether frames wait, so that a further one might be refused."""
        return self._waiting > 0

    def run(
        self, work: Work[T], deadline: float, camera: str = "", *, latest_only: bool = False
    ) -> T:
        """`work`'s result, done with a slot held: in this thread, or in another after a wait.

        deadline: when the answer must be there, in `clock`'s seconds. Frames without a camera
        share one turn. Raises DeadlineExceededError where the deadline can't be met,
        OverloadedError where too many wait, SupersededError where a newer frame of the camera
        came, and what `work` raises.
        """
        ticket = Waiter(work, camera, deadline, self._clock())
        if self._enter(ticket, latest_only and camera != ""):
            self._await(ticket)
        else:
            self._do(ticket)
            with self._lock:
                self._give()
        if ticket.error is not None:
            try:
                raise ticket.error
            finally:
                ticket.error = None  # else error, traceback and frame would keep each other
        return ticket.result  # type: ignore[return-value]

    def check(self, deadline: float, camera: str = "", *, latest_only: bool = False) -> None:
        """Raises what `run` would raise at once for such a frame, and takes nothing."""
        with self._lock:
            self._refuse_hopeless(camera, deadline, latest_only and camera != "")

    def _refuse_hopeless(self, camera: str, deadline: float, latest_only: bool) -> None:
        now = self._clock()
        if now + self._expected(camera, latest_only, now) > deadline:
            raise self._late(camera, now)
        own = len(self._queues.get(camera, ()))
        if self._busy < self.slots or self._waiting < self.max_waiting or (latest_only and own):
            return
        if self._longest() <= own + 1:
            raise self._overloaded()

    def _enter(self, ticket: Waiter[T], latest_only: bool) -> bool:
        """Whether the frame waits now; it has a slot where not. Raises where it may do neither."""
        with self._lock:
            self._refuse_hopeless(ticket.camera, ticket.deadline, latest_only)
            if self._busy < self.slots:
                self._busy += 1
                return False
            queue = self._queues.setdefault(ticket.camera, deque())
            if latest_only and queue:
                queue.pop().refuse(SupersededError("a newer frame of this camera took its place"))
            elif self._waiting >= self.max_waiting:
                # The camera that waits with the most gives up its oldest.
                max(self._queues.values(), key=len).popleft().refuse(self._overloaded())
            else:
                self._waiting += 1
            queue.append(ticket)
            return True

    def _longest(self) -> int:
        return max(map(len, self._queues.values()), default=0)

    def _expected(self, camera: str, latest_only: bool, now: float) -> float:
        """Seconds until a frame of `camera` that came `now` would be answered, by turns."""
        if self._busy < self.slots:
            return self._times.known(camera, now) or 0.0
        service = self._times.likely(camera, now)
        before = 0 if latest_only else len(self._queues.get(camera, ()))
        frames, seconds = before, before * service
        for name, queue in self._queues.items():
            if name != camera:
                turns = min(len(queue), before + 1)
                frames += turns
                seconds += turns * self._times.likely(name, now)
        rounds = frames // self.slots * (seconds / frames) if frames else 0.0
        return (rounds + self._times.mean + service) * CAUTION

    def _await(self, ticket: Waiter[T]) -> None:
        left = min(max(0.0, ticket.deadline - self._clock()), threading.TIMEOUT_MAX)
        if not ticket.done.acquire(timeout=left):
            with self._lock:
                if ticket.queued:
                    self._queues[ticket.camera].remove(ticket)
                    self._waiting -= 1
                    self._drop_if_empty(ticket.camera)
                    ticket.refuse(self._late(ticket.camera, self._clock()))
            ticket.done.acquire()

    def _do(self, ticket: Waiter[T]) -> None:
        """Works on a frame that has a slot, and learns from the time it took; a frame that failed
        says nothing of the time that a good one takes."""
        started = self._clock()
        try:
            ticket.result = ticket.work(started - ticket.asked)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            ticket.error = error
        else:
            now = self._clock()
            with self._lock:
                self._times.learn(ticket.camera, now - started, now)

    def _give(self) -> None:
        """Hands this thread's slot to one of the slots' threads if frames wait, or frees it."""
        if not self._waiting:
            self._busy -= 1
            return
        self._given += 1
        if self._resting:
            self._resting -= 1
            self._handed.notify()
        elif self._threads < self.slots:
            self._threads += 1
            threading.Thread(target=self._work, name="frames", daemon=True).start()

    def _work(self) -> None:
        """Life of a slot's thread: a slot that was given is used until no frame waits."""
        while True:
            with self._lock:
                while not self._given:
                    self._resting += 1
                    self._handed.wait()
                self._given -= 1
                ticket = self._next()
            while ticket is not None:
                self._do(ticket)
                ticket.done.release()
                with self._lock:
                    ticket = self._next()

    def _next(self) -> Waiter[Any] | None:
        """The next frame that can still be answered in time; without one, the slot is freed."""
        now = self._clock()
        while self._waiting:
            camera, queue = next(iter(self._queues.items()))
            ticket = queue.popleft()
            self._waiting -= 1
            self._queues.move_to_end(camera)
            self._drop_if_empty(camera)
            if now + self._times.likely(camera, now) * CAUTION <= ticket.deadline:
                ticket.queued = False
                return ticket
            ticket.refuse(self._late(camera, now))
        self._busy -= 1
        return None

    def _drop_if_empty(self, camera: str) -> None:
        if not self._queues[camera]:
            del self._queues[camera]

    def _room_in(self) -> float:
        """Seconds until the queue as it is will have been worked off."""
        return (self._waiting / self.slots + 1) * self._times.mean

    def _late(self, camera: str, now: float) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"the deadline can't be met: {self._waiting} frames wait and one takes"
            f" {self._times.likely(camera, now) * 1000:.0f} ms",
            retry_after=self._room_in(),
        )

    def _overloaded(self) -> OverloadedError:
        return OverloadedError(
            f"{self._waiting} frames wait already, which is the most", retry_after=self._room_in()
        )

    def check_in_time(self, deadline: float) -> None:
        """Raises DeadlineExceededError where `deadline`, in `clock`'s seconds, has passed."""
        if self._clock() > deadline:
            raise DeadlineExceededError(
                "the deadline passed while the image was decoded", retry_after=self._room_in()
            )

    def __repr__(self) -> str:
        return (
            f"<Admission {self._busy} of {self.slots} slots busy, {self._waiting} of"
            f" {self.max_waiting} waiting, {self._times.mean * 1000:.1f} ms a frame>"
        )
