"""Who may work on a frame now, who waits, and who is refused at once.

As many frames are worked on as there are slots. Beyond them a bounded number waits; a frame that
cannot be answered by its deadline is refused rather than made to wait for nothing; cameras take
turns, so that one that floods does not starve another; and where asked, a camera's newer frame
takes the place of its waiting one.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.errors import (
    DeadlineExceededError,
    LinesideError,
    NotReadyError,
    OverloadedError,
    SupersededError,
)

# Weight of the newest frame in the running estimate of the service time: about 20 frames' memory.
NEWEST = 0.05
# Seconds for which the estimate is believed after the last frame. Without an end, one estimate
# longer than any deadline would refuse every frame, and so never be corrected.
BELIEVED = 1.0


class Ticket:
    """One waiting frame. `granted` is set once it may work, or once `refusal` says why not."""

    __slots__ = ("camera", "deadline", "granted", "refusal")

    def __init__(self, camera: str, deadline: float) -> None:
        self.camera, self.deadline = camera, deadline
        self.granted = threading.Event()
        self.refusal: LinesideError | None = None

    def refuse(self, error: LinesideError) -> None:
        self.refusal = error
        self.granted.set()


class Admission:
    """Slots and the queue before them.

    `_lock` guards `_busy`, `_queues`, `_waiting`, `_service`, `_measured` and `_closed`. `_queues`
    holds the waiting tickets by camera, the camera whose turn is next first. `_measured` is when
    `_service` was last brought up to date. Times are seconds of `clock`.
    """

    def __init__(
        self, slots: int, max_waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slots, self.max_waiting, self._clock = slots, max_waiting, clock
        self._lock = threading.Lock()
        self._busy = 0
        self._waiting = 0
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._service = 0.0
        self._measured = -math.inf
        self._closed = False

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

    @property
    def service_time(self) -> float:
        """Running estimate of the seconds one frame holds a slot; 0 before the first."""
        return self._service

    @contextmanager
    def admit(
        self, deadline: float, camera: str = "", *, latest_only: bool = False
    ) -> Iterator[float]:
        """Holds a slot for the `with` block; yields the seconds waited for it.

        deadline: when the answer must be there, in `clock`'s seconds. Frames without a camera
        share one turn. Raises DeadlineExceededError where the deadline can't be met,
        OverloadedError where too many wait, SupersededError where a newer frame of the camera came.
        """
        asked = self._clock()
        ticket = self._enter(Ticket(camera, deadline), latest_only and camera != "")
        if ticket is not None:
            self._await(ticket)
        started = self._clock()
        held = None
        try:
            yield started - asked
            held = self._clock() - started
        finally:
            self._leave(held)

    def check(self, deadline: float, camera: str = "", *, latest_only: bool = False) -> None:
        """Raises what `admit` would raise at once for such a frame, and takes nothing."""
        with self._lock:
            self._refuse_hopeless(camera, deadline, latest_only and camera != "")

    def _refuse_hopeless(self, camera: str, deadline: float, latest_only: bool) -> None:
        if self._closed:
            raise NotReadyError("the server is stopping", retry_after=5)
        if self._clock() + self._expected(camera, latest_only) > deadline:
            raise self._late()
        own = len(self._queues.get(camera, ()))
        if self._busy < self.slots or self._waiting < self.max_waiting or (latest_only and own):
            return
        if self._longest() <= own + 1:
            raise self._overloaded()

    def _enter(self, ticket: Ticket, latest_only: bool) -> Ticket | None:
        """Takes a slot (None) or a place in the queue (the ticket), or raises."""
        with self._lock:
            self._refuse_hopeless(ticket.camera, ticket.deadline, latest_only)
            if self._busy < self.slots:
                self._busy += 1
                return None
            queue = self._queues.setdefault(ticket.camera, deque())
            if latest_only and queue:
                queue.pop().refuse(SupersededError("a newer frame of this camera took its place"))
            elif self._waiting >= self.max_waiting:
                # The camera that waits with the most gives up its oldest.
                max(self._queues.values(), key=len).popleft().refuse(self._overloaded())
            else:
                self._waiting += 1
            queue.append(ticket)
            return ticket

    def _longest(self) -> int:
        return max(map(len, self._queues.values()), default=0)

    def _expected(self, camera: str, latest_only: bool) -> float:
        """Seconds until a frame of `camera` that came now would be answered, by turns."""
        if self._busy < self.slots:
            return self._service if self._clock() - self._measured < BELIEVED else 0.0
        own = 0 if latest_only else len(self._queues.get(camera, ()))
        others = sum(min(len(q), own + 1) for name, q in self._queues.items() if name != camera)
        return ((own + others) // self.slots + 2) * self._service

    def _await(self, ticket: Ticket) -> None:
        left = min(max(0.0, ticket.deadline - self._clock()), threading.TIMEOUT_MAX)
        if not ticket.granted.wait(left):
            with self._lock:
                if not ticket.granted.is_set():
                    self._queues[ticket.camera].remove(ticket)
                    self._waiting -= 1
                    self._drop_if_empty(ticket.camera)
                    ticket.refuse(self._late())
        if ticket.refusal is not None:
            raise ticket.refusal

    def _leave(self, held: float | None) -> None:
        """Gives the slot to the next frame that can still be answered in time.

        held: seconds that the frame took, or None where it failed, which says nothing of the time
        that a good one takes.
        """
        with self._lock:
            now = self._clock()
            if held is not None:
                weight = NEWEST if now - self._measured < BELIEVED else 1.0
                self._service += (held - self._service) * weight
                self._measured = now
            while self._waiting:
                camera, queue = next(iter(self._queues.items()))
                ticket = queue.popleft()
                self._waiting -= 1
                self._queues.move_to_end(camera)
                self._drop_if_empty(camera)
                if now + self._service <= ticket.deadline:
                    ticket.granted.set()
                    return
                ticket.refuse(self._late())
            self._busy -= 1

    def _drop_if_empty(self, camera: str) -> None:
        if not self._queues[camera]:
            del self._queues[camera]

    def _room_in(self) -> float:
        """Seconds until the queue as it is will have been worked off."""
        return (self._waiting / self.slots + 1) * self._service

    def _late(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"the deadline can't be met: {self._waiting} frames wait and one takes"
            f" {self._service * 1000:.0f} ms",
            retry_after=self._room_in(),
        )

    def _overloaded(self) -> OverloadedError:
        return OverloadedError(
            f"{self._waiting} frames wait already, which is the most", retry_after=self._room_in()
        )

    def close(self) -> None:
        """Admits no further frame; those waiting or at work are finished."""
        with self._lock:
            self._closed = True

    def __repr__(self) -> str:
        return (
            f"<Admission {self._busy} of {self.slots} slots busy, {self._waiting} of"
            f" {self.max_waiting} waiting, {self._service * 1000:.1f} ms a frame>"
        )
