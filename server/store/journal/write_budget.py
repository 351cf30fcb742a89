"""How much a thread may still write to a disk that wears out."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

MINUTE = 60.0
# What the calling thread has handed to the kernel to be written (proc_pid_io(5)); without it, where
# a kernel does not account for tasks, steps count as what they were expected to write.
ACCOUNT = "/proc/thread-self/io"


def thread_wrote() -> int | None:
    """Bytes that this thread has written so far, to files of any kind; None where the kernel does
    not say."""
    with suppress(OSError, ValueError), open(ACCOUNT, "rb") as file:
        for line in file:
            if line.startswith(b"wchar:"):
                return int(line.split()[1])
    return None


class WriteBudget:
    """At most `per_minute` bytes in any 60 seconds; 0: no limit. For one thread.

    A step may write a quarter of it, and as much again where that makes SQLite take its log into
    its file; so it begins only where half of it is left.
    """

    def __init__(self, per_minute: int, wrote: Callable[[], int | None] = thread_wrote) -> None:
        self.per_minute, self._wrote = per_minute, wrote
        self._steps: deque[tuple[float, int]] = deque()

    def room(self, now: float) -> float:
        """Bytes that a step at `now`, in seconds of time.monotonic(), may write; 0 where it has to
        wait."""
        if not self.per_minute:
            return math.inf
        while self._steps and self._steps[0][0] <= now - MINUTE:
            self._steps.popleft()
        spent = sum(size for _, size in self._steps)
        return self.per_minute / 4 if spent <= self.per_minute / 2 else 0.0

    @contextmanager
    def step(self, now: float, expected: float = 0.0) -> Iterator[None]:
        """Counts what the `with` block writes, or `expected` bytes where that can't be known."""
        if not self.per_minute:
            yield
            return
        before = self._wrote()
        try:
            yield
        finally:
            after = self._wrote()
            known = None if before is None or after is None else after - before
            self._steps.append((now, math.ceil(expected) if known is None else known))
