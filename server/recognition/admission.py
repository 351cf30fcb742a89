"""Admission: works on a frame now, lets it wait, or refuses it at once.

As many frames are worked on as there are slots. Beyond them a bounded number waits. A frame that
can't be answered by its deadline is refused at once. Cameras take turns, so that one that floods
does not starve another. With `latest_only`, a camera's newer frame takes the place of its waiting
one.

If a slot is free, the thread that brings a frame works on it. Frames that wait are worked on by
threads of the slots' own, one after the other: to wake the thread of each frame instead would leave
a core idle meanwhile, every time.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from server.errors import DeadlineExceededError, LinesideError, OverloadedError, SupersededError

# A frame may wait only if its deadline leaves this factor times the expected wait: a frame that is
# refused at its deadline waited for nothing. A shorter queue keeps the slots as busy as a longer
# one.
WAIT_MARGIN = 1.25

# Weight of the newest frame in a running estimate: about 20 frames' memory.
NEWEST_WEIGHT = 0.05
# Time after its last frame for which an estimate counts. Without an end, one estimate longer than
# any deadline would refuse every frame, and so never be corrected.
ESTIMATE_MAX_AGE_S = 1.0
# Cameras with an estimate of their own, the latest ones: names come from clients.
MAX_CAMERAS = 256

T = TypeVar("T")
# Called with the seconds that were waited for the slot.
Work = Callable[[float], T]


class Estimate:
    """A running mean of seconds; `measured` is the time of its last update."""

    __slots__ = ("measured", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.measured = -math.inf

    def learn(self, took: float, now: float) -> None:
        # The age counts from this frame's start: one slow frame is no reason to forget all before
        # it, and to refuse all after it.
        weight = NEWEST_WEIGHT if self.is_recent(now - took) else 1.0
        self.seconds += (took - self.seconds) * weight
        self.measured = now

    def is_recent(self, now: float) -> bool:
        return now - self.measured < ESTIMATE_MAX_AGE_S


class ServiceTimes:
    """Estimates how long a frame holds a slot, over all frames and for each camera.

    Cameras differ in the size of their pictures and in the model they ask for: slow frames of one
    must not get the quick frames of another refused.
    """

    def __init__(self) -> None:
        self._all = Estimate()
        self._own: OrderedDict[str, Estimate] = OrderedDict()

    @property
    def mean(self) -> float:
        """Seconds a frame, of all cameras; 0 before the first."""
        return self._all.seconds

    def known(self, camera: str, now: float) -> float | None:
        """Returns the seconds of a frame of `camera`; None if none was answered recently."""
        own = self._own.get(camera)
        return own.seconds if own is not None and own.is_recent(now) else None

    def likely(self, camera: str, now: float) -> float:
        """Returns the seconds of a frame of `camera`, or of all cameras if that is not known."""
        known = self.known(camera, now)
        return self.mean if known is None else known

    def learn(self, camera: str, took: float, now: float) -> None:
        """Learns from a frame of `camera` that held a slot for `took` seconds until `now`."""
        self._all.learn(took, now)
        own = self._own.setdefault(camera, Estimate())
        own.learn(took, now)
        self._own.move_to_end(camera)
        if len(self._own) > MAX_CAMERAS:
            self._own.popitem(last=False)


class Waiter(Generic[T]):
    """One frame. `done` is locked until its `result` or its `error` is there; `queued` is true
    until it is taken from the queue.

    A plain lock as an event of one waiter takes a fifth of the work of threading.Event.
    """

    __slots__ = ("arrived_at", "camera", "deadline", "done", "error", "queued", "result", "work")

    def __init__(self, work: Work[T], camera: str, deadline: float, arrived_at: float) -> None:
        self.work = work
        self.camera = camera
        self.deadline = deadline
        self.arrived_at = arrived_at
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

    `_lock` guards all that follows it. `_queues` holds the waiting frames by camera, the camera
    whose turn is next first. `_passed_on` counts slots that were passed to the slots' threads and
    not yet taken up. `_idle` counts those threads that wait for a slot. Times are seconds of
    `clock`.
    """

    def __init__(
        self, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._slot_passed = threading.Condition(self._lock)
        self._passed_on = self._idle = self._threads = 0
        self._busy = 0
        self._waiting = 0
        self._queues: OrderedDict[str, deque[Waiter[Any]]] = OrderedDict()
        self._times = ServiceTimes()
        # When the frames in the slots were begun, by the id of what holds the slot; not guarded.
        self._begun: dict[int, float] = {}

    @property
    def stuck_s(self) -> float:
        """Seconds for which all slots have been held by the same frames; 0 if one is free."""
        begun = list(self._begun.values())
        return self._clock() - max(begun) if len(begun) >= self.slots else 0.0

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def busy(self) -> int:
        return self._busy

    @property
    def alone(self) -> bool:
        """True if at most one frame is worked on, which may then use all cores."""
        return self._busy <= 1 and self._waiting == 0

    @property
    def crowded(self) -> bool:
        """True if frames wait, so that a further one might be refused."""
        return self._waiting > 0

    def run(
        self, work: Work[T], deadline: float, camera: str = "", *, latest_only: bool = False
    ) -> T:
        """Calls `work` with a slot held, in this thread or after a wait in another, and returns its
        result.

        deadline: when the answer must be there, in `clock`'s seconds. Frames without a camera
        share one turn. Raises DeadlineExceededError if the deadline can't be met, OverloadedError
        if too many wait, SupersededError if a newer frame of the camera came, and what `work`
        raises.
        """
        waiter = Waiter(work, camera, deadline, self._clock())
        if self._enter(waiter, latest_only and camera != ""):
            self._await(waiter)
        else:
            self._do(waiter)
            with self._lock:
                self._pass_on_or_free()
        if waiter.error is not None:
            try:
                raise waiter.error
            finally:
                waiter.error = None  # else error, traceback and frame would keep each other
        return waiter.result  # type: ignore[return-value]

    @contextmanager
    def idle_slot(self) -> Iterator[bool]:
        """Hold a slot if one is free, which means that no frame waits, and yield True; else yield
        False. Such work teaches nothing of the time that a camera's frame takes."""
        with self._lock:
            is_free = self._busy < self.slots
            self._busy += is_free
        holder = object()
        if is_free:
            self._begun[id(holder)] = self._clock()
        try:
            yield is_free
        finally:
            if is_free:
                del self._begun[id(holder)]
                with self._lock:
                    self._pass_on_or_free()

    def check(self, deadline: float, camera: str = "", *, latest_only: bool = False) -> None:
        """Raises what `run` would raise at once for such a frame, and takes nothing."""
        with self._lock:
            self._refuse_hopeless(camera, deadline, latest_only and camera != "")

    def _refuse_hopeless(self, camera: str, deadline: float, latest_only: bool) -> None:
        now = self._clock()
        if now + self._expected(camera, latest_only, now) > deadline:
            raise self._deadline_error(camera, now)
        own = len(self._queues.get(camera, ()))
        if self._busy < self.slots or self._waiting < self.max_waiting or (latest_only and own):
            return
        if max(map(len, self._queues.values()), default=0) <= own + 1:
            raise self._overloaded_error()

    def _enter(self, waiter: Waiter[T], latest_only: bool) -> bool:
        """Returns True if the frame waits now, False if it has a slot; raises if it gets
        neither."""
        with self._lock:
            self._refuse_hopeless(waiter.camera, waiter.deadline, latest_only)
            if self._busy < self.slots:
                self._busy += 1
                return False
            queue = self._queues.setdefault(waiter.camera, deque())
            if latest_only and queue:
                queue.pop().refuse(SupersededError("a newer frame of this camera took its place"))
            elif self._waiting >= self.max_waiting:
                # The camera with the most waiting frames loses its oldest.
                max(self._queues.values(), key=len).popleft().refuse(self._overloaded_error())
            else:
                self._waiting += 1
            queue.append(waiter)
            return True

    def _expected(self, camera: str, latest_only: bool, now: float) -> float:
        """Returns the seconds until a frame of `camera` that came `now` would be answered."""
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
        return (rounds + self._times.mean + service) * WAIT_MARGIN

    def _await(self, waiter: Waiter[T]) -> None:
        timeout = min(max(0.0, waiter.deadline - self._clock()), threading.TIMEOUT_MAX)
        if not waiter.done.acquire(timeout=timeout):
            with self._lock:
                if waiter.queued:
                    self._queues[waiter.camera].remove(waiter)
                    self._waiting -= 1
                    self._drop_if_empty(waiter.camera)
                    waiter.refuse(self._deadline_error(waiter.camera, self._clock()))
            waiter.done.acquire()

    def _do(self, waiter: Waiter[T]) -> None:
        """Works on a frame that has a slot, and learns how long it took, unless it failed."""
        started = self._begun[id(waiter)] = self._clock()
        try:
            waiter.result = waiter.work(started - waiter.arrived_at)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that called run
            waiter.error = error
        else:
            now = self._clock()
            with self._lock:
                self._times.learn(waiter.camera, now - started, now)
        finally:
            del self._begun[id(waiter)]

    def _pass_on_or_free(self) -> None:
        """Hands this thread's slot to one of the slots' threads if frames wait, or frees it."""
        if not self._waiting:
            self._busy -= 1
            return
        self._passed_on += 1
        if self._idle:
            self._idle -= 1
            self._slot_passed.notify()
        elif self._threads < self.slots:
            self._threads += 1
            threading.Thread(target=self._work, name="frames", daemon=True).start()

    def _work(self) -> None:
        """Loop of a slot's thread: takes a slot that was passed on, and uses it until no frame
        waits."""
        while True:
            with self._lock:
                while not self._passed_on:
                    self._idle += 1
                    self._slot_passed.wait()
                self._passed_on -= 1
                waiter = self._next()
            while waiter is not None:
                self._do(waiter)
                waiter.done.release()
                with self._lock:
                    waiter = self._next()

    def _next(self) -> Waiter[Any] | None:
        """Returns the next frame that can still be answered in time; frees the slot if there is
        none."""
        now = self._clock()
        while self._waiting:
            camera, queue = next(iter(self._queues.items()))
            waiter = queue.popleft()
            self._waiting -= 1
            self._queues.move_to_end(camera)
            self._drop_if_empty(camera)
            if now + self._times.likely(camera, now) * WAIT_MARGIN <= waiter.deadline:
                waiter.queued = False
                return waiter
            waiter.refuse(self._deadline_error(camera, now))
        self._busy -= 1
        return None

    def _drop_if_empty(self, camera: str) -> None:
        if not self._queues[camera]:
            del self._queues[camera]

    def _seconds_to_drain(self) -> float:
        """Returns the seconds until the frames that wait now will have been answered."""
        return (self._waiting / self.slots + 1) * self._times.mean

    def _deadline_error(self, camera: str, now: float) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"the deadline can't be met: {self._waiting} frames wait and one takes"
            f" {self._times.likely(camera, now) * 1000:.0f} ms",
            retry_after=self._seconds_to_drain(),
        )

    def _overloaded_error(self) -> OverloadedError:
        return OverloadedError(
            f"the queue is full: {self._waiting} frames wait (max_waiting)",
            retry_after=self._seconds_to_drain(),
        )

    def check_in_time(self, deadline: float, work: str) -> None:
        """Raises DeadlineExceededError if `deadline`, in `clock`'s seconds, has passed. work: what
        was done meanwhile, for the message."""
        if self._clock() > deadline:
            raise DeadlineExceededError(
                f"the deadline passed while {work}",
                retry_after=self._seconds_to_drain(),
            )

    def __repr__(self) -> str:
        return (
            f"<Admission {self._busy} of {self.slots} slots busy, {self._waiting} of"
            f" {self.max_waiting} waiting, {self._times.mean * 1000:.1f} ms a frame>"
        )
