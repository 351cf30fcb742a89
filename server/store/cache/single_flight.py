"""What several ask for at the same time is done once."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from server.errors import DeadlineExceededError, LinesideError

T = TypeVar("T")

# Statuses that say something of the frame, so that they hold for whoever sent the same one. All
# others are about the one request: its deadline, its turn, its camera's newer frame.
OF_THE_FRAME = frozenset({400, 413, 415, 422})


class _Flight(Generic[T]):
    """What one thread is doing for all who wait. `landed` is set at its end, whichever it is."""

    __slots__ = ("error", "landed", "value")

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.value: T | None = None
        self.error: LinesideError | None = None


class SingleFlight(Generic[T]):
    """Runs what has the same key once at a time.

    `_lock` guards `_flights` and `_waiting`, the threads that wait for others' flights; at most
    `most_waiting` do, so that they never take all of a server's threads.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most = most_waiting
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight[T]] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Threads that wait for others at this moment."""
        return self._waiting

    def run(self, key: str, work: Callable[[], T], deadline: float) -> tuple[T, bool]:
        """`work()`, or what another thread's `work` for the same key came to meanwhile, and
        whether it was another's.

        deadline: seconds of time.monotonic() until which another's is waited for. Raises what
        `work` raises, an error of another's where it is about the frame, and
        DeadlineExceededError.
        """
        while True:
            flight, mine = self._board(key)
            if flight is None:
                return work(), False
            if mine:
                return self._fly(key, flight, work), False
            try:
                landed = flight.landed.wait(_seconds_until(deadline))
            finally:
                with self._lock:
                    self._waiting -= 1
            if not landed:
                raise DeadlineExceededError(
                    "the deadline passed while the same frame was worked on for another request",
                    retry_after=1,
                )
            if flight.value is not None:
                return flight.value, True
            if flight.error is not None:
                # One of its own, since an exception that is raised belongs to its thread.
                raise type(flight.error)(flight.error.message, retry_after=flight.error.retry_after)

    def _board(self, key: str) -> tuple[_Flight[T] | None, bool]:
        """The flight for `key`, and whether this thread is to fly it; None where too many wait."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight()
                return flight, True
            if self._waiting >= self._most:
                return None, True
            self._waiting += 1
            return flight, False

    def _fly(self, key: str, flight: _Flight[T], work: Callable[[], T]) -> T:
        try:
            flight.value = work()
            return flight.value
        except LinesideError as error:
            if error.status in OF_THE_FRAME:
                flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.landed.set()


def _seconds_until(deadline: float) -> float:
    return min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
