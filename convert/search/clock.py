"""The time of a search: it goes on counting after a kill, and ends a trial that is too long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from convert.terminal import Advance, Terminal


class TimeOverError(Exception):
    """The time of the search was over within a trial."""


class Clock:
    """Counts the seconds that a search has worked, in all its runs, in the file `file`.

    limit: seconds in all. A kill loses what came after the last `tick`.
    """

    def __init__(self, file: Path, limit: float, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._file, self._now, self._before = file, now, 0.0
        # There is none in the first run.
        with suppress(OSError, msgspec.DecodeError):
            self._before = msgspec.json.decode(file.read_bytes(), type=float)
        self._begin = now()

    @property
    def goes_on(self) -> bool:
        """Return True if an earlier run worked already."""
        return self._before > 0

    @property
    def spent(self) -> float:
        """Return seconds that were worked."""
        return self._before + self._now() - self._begin

    @property
    def left(self) -> float:
        """Return seconds until the limit; below 0 after it."""
        return self.limit - self.spent

    def tick(self) -> None:
        """Write down the time until now. Raises OSError."""
        part = self._file.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(self.spent))
        part.replace(self._file)


class Watch(Terminal):
    """The terminal of one trial: its lines go to a log, and each of them, one an epoch at least,
    may end the trial.

    end: raises TimeOverError when the clock has fewer seconds left; None never does.
    """

    def __init__(self, log: Path, clock: Clock, end: float | None) -> None:
        super().__init__()
        self._log, self._clock, self._end = log, clock, end

    def say(self, line: str) -> None:
        """Append a line to the log. Raises TimeOverError."""
        with self._log.open("a", encoding="utf-8") as out:
            out.write(line + "\n")
        self._clock.tick()
        if self._end is not None and self._clock.left < self._end:
            raise TimeOverError

    @contextmanager
    def bar(self, text: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show no bar: the search says what it does itself."""
        yield lambda: None
