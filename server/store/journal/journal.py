"""The journal: a row for every frame, written by a thread of its own so that none waits for it.

Rows lie in a bounded queue until the thread takes them, all at once. What can't be written stays
there as long as it holds, and is lost, and counted, beyond.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from server.recognition.answers import FrameAnswered, FrameRefused
from server.store.journal.schema import Values, answered, refused
from server.store.journal.writer import JournalLimits, Loss, Writer

logger = logging.getLogger(__name__)

# Rows that wait to be written: of 200 frames a second those of 50 s, in about 10 MB.
MOST_WAITING = 10_000
# Seconds between two turns of the thread: each writes whole pages, however few rows there are.
EVERY = 2.0
# Seconds that the last rows get when the server stops.
LAST_ROWS = 10.0


class Journal:
    """Keeps a row of each frame in the file at `path`; `lost` is told how many could not be kept,
    `written` how many were.

    `answered` and `refused` are listeners: they take microseconds and raise nothing. The thread
    begins with the first row. `_lock` guards `_thread`, `_closing` and what is added to `_rows`;
    `_turned`, a condition, guards `_turns`, those that the thread has ended, and `_working`,
    whether it is in one.
    """

    def __init__(
        self,
        path: Path,
        bounds: JournalLimits,
        lost: Callable[[int], None],
        written: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.path, self._loss = path, Loss(lost)
        self._rows: deque[Values] = deque()
        self._lock, self._turned = threading.Lock(), threading.Condition()
        self._thread: threading.Thread | None = None
        self._wake, self._closing = threading.Event(), False
        self._turns, self._working = 0, False
        self._writer = Writer(path, bounds, self._loss, written)

    def answered(self, seen: FrameAnswered) -> None:
        """Listener of answered frames."""
        self._take(answered(seen))

    def refused(self, refusal: FrameRefused) -> None:
        """Listener of frames that got no labels."""
        self._take(refused(refusal))

    def _take(self, row: Values) -> None:
        with self._lock:
            room = not self._closing and len(self._rows) < MOST_WAITING
            if room:
                self._rows.append(row)
                if self._thread is None:
                    self._begin()
        if not room:
            self._loss.add(1)

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(EVERY)
            self._wake.clear()
            self._turn(last=False)
        self._turn(last=True)
        self._writer.close()

    def _turn(self, *, last: bool) -> None:
        with self._turned:
            self._working = True
        try:
            self._writer.turn(self._rows, time.time(), time.monotonic(), last=last)
        except Exception:
            # Else no row would be written any more, and none would be counted as lost until the
            # queue is full.
            logger.exception("a turn of the journal failed")
        with self._turned:
            self._working = False
            self._turns += 1
            self._turned.notify_all()

    def settle(self, seconds: float) -> None:
        """Returns once the thread has written the rows taken in so far, or could not; at the
        latest after `seconds`."""
        if self._thread is None:
            return
        waiting = bool(self._rows)  # looked at first: rows are taken out only in a turn
        with self._turned:
            if not waiting and not self._working:
                return
            # One that is under way may have passed by the newest rows.
            wanted = self._turns + 1 + self._working
            until = time.monotonic() + seconds
            while self._turns < wanted and (left := until - time.monotonic()) > 0:
                self._wake.set()
                self._turned.wait(left)

    def doubt(self) -> None:
        """Has the thread look whether the file is damaged, and if it is, begin a new one. For a
        reader that met what no journal holds: the writer may not come by it for days."""
        self._writer.doubt()
        with self._lock:
            if self._thread is None and not self._closing:
                self._begin()
        self._wake.set()

    def close(self) -> None:
        """Writes what waits, whatever the budget, and closes the file; what comes later is lost."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is None:
            return
        self._wake.set()
        thread.join(LAST_ROWS)
        if left := len(self._rows):
            self._loss.add(left)
            fields = {"rows": left}
            logger.error("rows of the journal are lost by the stop", extra={"fields": fields})
