"""Work that several threads ask for at the same time is done once."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from server.errors import DeadlineExceededError, LinesideError

T = TypeVar("T")

# Statuses that say something about the frame, so that they hold for everyone who sent the same one.
# All others are about the one request: its deadline, its turn, its camera's newer frame.
STATUSES_OF_THE_FRAME = frozenset({400, 413, 415, 422})


class _Call(Generic[T]):
    """Work that one thread does for all who wait. `ended` is set at its end, however it ends."""

    __slots__ = ("ended", "error", "value")

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.value: T | None = None
        self.error: LinesideError | None = None


class SingleFlight(Generic[T]):
    """Runs work with the same key once at a time.

    `_lock` guards `_calls` and `_waiting`, the number of threads that wait for others' calls; at
    most `most_waiting` do, so that they never take all of a server's threads.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._calls: dict[str, _Call[T]] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Threads that wait for others at this moment."""
        return self._waiting

    def run(self, key: str, work: Callable[[], T], deadline: float) -> tuple[T, bool]:
        """Return the value of `work()`, or of another thread's `work` for the same key that is
        under way, and True if it is another's.

        deadline: seconds of time.monotonic() until which another's is waited for. Raises what
        `work` raises, an error of another's if it is about the frame, and DeadlineExceededError.
        """
        while True:
            call, own = self._join(key)
            if call is None:
                return work(), False
            if own:
                return self._do(key, call, work), False
            seconds = min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            try:
                ended = call.ended.wait(seconds)
            finally:
                with self._lock:
                    self._waiting -= 1
            if not ended:
                raise DeadlineExceededError(
                    "the deadline passed while the same frame was worked on for another request",
                    retry_after=1,
                )
            if call.value is not None:
                return call.value, True
            if call.error is not None:
                # One of its own, since an exception that is raised belongs to its thread.
                raise type(call.error)(call.error.message, retry_after=call.error.retry_after)

    def _join(self, key: str) -> tuple[_Call[T] | None, bool]:
        """Return the call for `key`, and True if this thread is to do its work; None if too many
        wait."""
        with self._lock:
            call = self._calls.get(key)
            if call is None:
                call = self._calls[key] = _Call()
                return call, True
            if self._waiting >= self._most_waiting:
                return None, True
            self._waiting += 1
            return call, False

    def _do(self, key: str, call: _Call[T], work: Callable[[], T]) -> T:
        try:
            call.value = work()
            return call.value
        except LinesideError as error:
            if error.status in STATUSES_OF_THE_FRAME:
                call.error = error
            raise
        finally:
            with self._lock:
                del self._calls[key]
            call.ended.set()
