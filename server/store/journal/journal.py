"""The journal: a row for every frame, written by a thread of its own so that none waits for it.

Rows lie in a bounded queue until the thread takes them, all at once. Rows that can't be written
stay there as long as it holds, and are lost, and counted, beyond.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from server.recognition.answers import FrameAnswered, FrameRefused
from server.store.journal.schema import Values, answered, refused
from server.store.journal.writer import JournalLimits, Loss, Writer
from server.system.background import BackgroundQueue

logger = logging.getLogger(__name__)

# Rows that wait to be written: of 200 frames a second those of 50 s, in about 10 MB.
WAITING_ROWS_MAX = 10_000
# Seconds between two turns of the thread: each writes whole pages, however few rows there are.
TURN_INTERVAL_S = 2.0
# Seconds for which the last rows are written when the server stops.
STOP_TIMEOUT_S = 10.0


class Journal:
    """Keeps a row of each frame in the file at `path`; `lost` is called with how many could not be
    kept, `written` with how many were.

    `answered` and `refused` are listeners: they take microseconds and raise nothing. The thread
    begins with the first row.
    """

    def __init__(
        self,
        path: Path,
        bounds: JournalLimits,
        lost: Callable[[int], None],
        written: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.path = path
        self._loss = Loss(lost)
        self._writer = Writer(path, bounds, self._loss, written)
        self._queue = BackgroundQueue(
            "journal",
            self._write,
            capacity=WAITING_ROWS_MAX,
            delay_s=TURN_INTERVAL_S,
            idle_s=TURN_INTERVAL_S,
        )

    def answered(self, event: FrameAnswered) -> None:
        self._take(answered(event))

    def refused(self, refusal: FrameRefused) -> None:
        self._take(refused(refusal))

    def _take(self, row: Values) -> None:
        if not self._queue.submit(row):
            self._loss.add(1)

    def _write(self, rows: deque[Values]) -> None:
        last = self._queue.closed
        self._writer.turn(rows, time.time(), time.monotonic(), last=last)
        if last:
            self._writer.close()

    def settle(self, seconds: float) -> None:
        """Returns once the thread has written the rows taken in so far, or could not; at the
        latest after `seconds`."""
        self._queue.flush(seconds)

    def doubt(self) -> None:
        """Has the thread look whether the file is damaged, and if it is, begin a new one. For a
        reader that met what no journal holds: the writer may not come by it for days."""
        self._writer.doubt()
        self._queue.wake()

    def close(self) -> None:
        """Writes the rows that wait, whatever the budget, and closes the file; later rows are
        lost."""
        if rows := self._queue.close(STOP_TIMEOUT_S):
            self._loss.add(rows)
            fields = {"rows": rows}
            logger.error("rows of the journal are lost by the stop", extra={"fields": fields})
