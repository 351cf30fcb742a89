"""The journal: a row for every frame, written by a thread of its own so that none waits for it.

Rows wait in a bounded queue until the thread takes them, all at once, and writes them within a
budget. Rows that can't be written stay there as long as it has room, and are lost, and counted,
beyond.
"""

import logging
import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from server.observe.logs import ProblemLog
from server.recognition.answers import FrameAnswered, FrameRefused
from server.store.journal.database import UNUSABLE, JournalFile
from server.store.journal.schema import Values, answered, refused
from server.store.journal.waiting import WaitingRows
from server.system.background import BackgroundQueue
from server.system.clock import ClockGuard
from server.system.files import set_aside
from server.system.sqlite import COMPANIONS, DatabaseDamagedError, check_whole, is_damage

logger = logging.getLogger(__name__)

# Rows that wait to be written: of 200 frames a second those of 50 s, in about 10 MB.
WAITING_ROWS_MAX = 10_000
# Seconds between two turns of the thread: each writes whole pages, however few rows there are.
TURN_INTERVAL_S = 2.0
# Seconds for which the last rows are written when the server stops.
STOP_TIMEOUT_S = 10.0
# Rows of one transaction; bytes that a row takes in the file beside its texts, index included, and
# what a transaction writes beside its rows: whole pages, begun before or not full.
TRANSACTION_ROWS_MAX = 2000
ROW_BYTES = 200
PAGES_BYTES = 16_384
# DELETEs in a row, each of some hundred rows.
DELETES_MAX = 100
# Seconds between two looks at the rows' age.
AGE_CHECK_INTERVAL_S = 60.0
DAY_S = 86_400.0
FAILURES = (sqlite3.Error, OSError)
MINUTE_S = 60.0
# The bytes that the calling thread has handed to the kernel to be written (proc_pid_io(5)). If the
# kernel does not account for tasks, steps count as what they were expected to write.
ACCOUNT = "/proc/thread-self/io"


def thread_wrote() -> int | None:
    """Returns the bytes that this thread has written so far, to files of any kind; None if the
    kernel does not say."""
    with suppress(OSError, ValueError), open(ACCOUNT, "rb") as file:
        for line in file:
            if line.startswith(b"wchar:"):
                return int(line.split()[1])
    return None


class WriteBudget:
    """At most `per_minute` bytes in any 60 seconds; 0: no limit. For one thread.

    A step may write a quarter of it, and as much again if that makes SQLite take its log into its
    file; so it begins only if half of it is left.
    """

    def __init__(self, per_minute: int, wrote: Callable[[], int | None] = thread_wrote) -> None:
        self.per_minute = per_minute
        self._wrote = wrote
        self._steps: deque[tuple[float, int]] = deque()

    def room(self, now: float) -> float:
        """Returns the bytes that a step at `now`, in seconds of time.monotonic(), may write; 0 if
        it has to wait."""
        if not self.per_minute:
            return math.inf
        while self._steps and self._steps[0][0] <= now - MINUTE_S:
            self._steps.popleft()
        spent = sum(size for _, size in self._steps)
        return self.per_minute / 4 if spent <= self.per_minute / 2 else 0.0

    @contextmanager
    def step(self, now: float, expected: float = 0.0) -> Iterator[None]:
        """Counts what the `with` block writes, or `expected` bytes if that can't be known."""
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


class JournalLimits(msgspec.Struct, frozen=True):
    """The limits of the journal. days: age of the oldest row; 0: no limit. bytes: of the file and
    what is written ahead of it. per_minute: bytes written; 0: no limit."""

    days: float
    bytes: int
    per_minute: int = 0

    @property
    def wal_bytes(self) -> int:
        """Bytes that are written ahead before they are taken into the file."""
        fourth = self.bytes // 4
        return min(4 << 20, fourth, self.per_minute // 4 or fourth)

    @property
    def file_bytes(self) -> int:
        """Bytes that the file may take: the rest of `bytes`, less two transactions on their way."""
        return self.bytes - self.wal_bytes - 4 * ROW_BYTES * self.rows_at_once

    @property
    def rows_at_once(self) -> int:
        """Rows of one transaction, which takes a sixteenth of the file at most."""
        return max(1, min(TRANSACTION_ROWS_MAX, self.bytes // 32 // ROW_BYTES))


class Loss:
    """Counts lost rows, and calls `on_lost` with their number. `_lock` guards `_since`, those since
    the last `take`."""

    def __init__(self, on_lost: Callable[[int], None]) -> None:
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._since = 0

    def add(self, rows: int) -> None:
        with self._lock:
            self._since += rows
        self._on_lost(rows)

    def take(self) -> int:
        """Returns the number of rows since the last call."""
        with self._lock:
            since = self._since
            self._since = 0
        return since


class Writer:
    """Writes to the journal at `path` within `bounds`; rows that can't be kept are counted by
    `loss`; `written` is called with how many were written.

    What goes wrong is logged once, and once more when it is over.
    """

    def __init__(
        self,
        path: Path,
        bounds: JournalLimits,
        loss: Loss,
        written: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._bounds = bounds
        self._loss = loss
        self._written = written
        self._budget = WriteBudget(bounds.per_minute)
        self._file: JournalFile | None = None
        self._doubted = threading.Event()
        self._problem = ProblemLog(
            "the journal can't be written, frames go on", "the journal is written again"
        )
        self._lost = 0
        self._looked = -math.inf
        self._clock = ClockGuard("rows of the journal")
        # Of an earlier process, which may have written some of them.
        self._inherited: deque[Values] = deque()

    @property
    def inherited(self) -> int:
        """The number of rows of an earlier process that wait."""
        return len(self._inherited)

    def inherit(self, rows: Sequence[Values]) -> None:
        """Write the rows of an earlier process, before all others, unless they are there."""
        self._inherited.extend(rows)

    def turn(self, rows: deque[Values], wall: float, now: float, *, last: bool = False) -> None:
        """Writes the rows that wait, as far as the budget allows, and deletes old ones.

        wall: Unix seconds. now: seconds of time.monotonic(). last: there is no later turn, so that
        the budget does not count. What can't be written now stays in `rows`.
        """
        lost = self._loss.take()
        self._lost += lost
        try:
            if rows or self._inherited or not last:
                self._write_all(rows, wall, now, last)
        except FAILURES as error:
            self._failed(error)
        else:
            self._went_well(lost, last)

    def _write_all(self, rows: deque[Values], wall: float, now: float, last: bool) -> None:
        file = self._open(now)
        if self._doubted.is_set():
            self._doubted.clear()
            check_whole(file.path)
        if self._inherited:
            self._write_inherited(file, now, last)
        while rows and self._write_some(file, rows, now, last):
            pass
        self._forget(file, wall, now)

    def _write_inherited(self, file: JournalFile, now: float, last: bool) -> None:
        self._inherited = deque(file.without_known(self._inherited))
        count = len(self._inherited)
        while self._inherited and self._write_some(file, self._inherited, now, last):
            pass
        logger.info("rows that waited at a kill are written", extra={"fields": {"rows": count}})

    def doubt(self) -> None:
        """Has the next turn read the whole file, to see whether it is damaged. For any thread."""
        self._doubted.set()

    def _open(self, now: float) -> JournalFile:
        if self._file is not None and (reason := self._file.lost()):
            if self._file.cut():
                raise DatabaseDamagedError(reason)
            self.close()
            fields = {"path": str(self._path), "reason": reason}
            logger.error("the journal is opened anew", extra={"fields": fields})
        if self._file is None:
            with self._budget.step(now, PAGES_BYTES):
                self._file = JournalFile(
                    self._path, self._bounds.file_bytes, self._bounds.wal_bytes
                )
        return self._file

    def _write_some(self, file: JournalFile, rows: deque[Values], now: float, last: bool) -> bool:
        """Writes one transaction. Returns False if the budget has no room for it."""
        room = math.inf if last else self._budget.room(now)
        if not room:
            return False
        taken: deque[Values] = deque()
        size = float(PAGES_BYTES)
        while rows and len(taken) < self._bounds.rows_at_once and (size < room or not taken):
            taken.append(rows.popleft())
            size += _size(taken[-1])
        try:
            with self._budget.step(now, size):
                self._write(file, taken)
        finally:
            rows.extendleft(reversed(taken))
        self._forget_some(file.trim_to_size, now)
        return True

    def _write(self, file: JournalFile, taken: deque[Values]) -> None:
        """Writes `taken`, and leaves in it what could not be written."""
        try:
            file.write(tuple(taken))
            self._written(len(taken))
            taken.clear()
        except UNUSABLE:
            while taken:
                try:
                    file.write((taken[0],))
                except UNUSABLE as error:
                    self._loss.add(1)
                    fields = {"reason": str(error)}
                    logger.error("a row can't be kept in the journal", extra={"fields": fields})
                else:
                    self._written(1)
                taken.popleft()

    def _forget(self, file: JournalFile, wall: float, now: float) -> None:
        """Deletes old rows, once a minute, unless a jump of the clock may have made them old."""
        settled = self._clock.is_stable(wall, now)
        if not settled or not self._bounds.days or now - self._looked < AGE_CHECK_INTERVAL_S:
            return
        oldest = wall - self._bounds.days * DAY_S
        if not self._forget_some(lambda: file.delete_older_than(oldest), now):
            self._looked = now

    def _forget_some(self, forget: Callable[[], bool], now: float) -> bool:
        """Calls `forget` until it says that no more are left to go, as often as the budget and the
        rows that come meanwhile allow. Returns whether more may be left."""
        for _ in range(DELETES_MAX):
            if not self._budget.room(now):
                return True
            with self._budget.step(now, PAGES_BYTES):
                if not forget():
                    return False
        return True

    def _failed(self, error: Exception) -> None:
        """Closes the file: a fault of an open file may be gone once it is opened again."""
        self.close()
        reason = str(error)
        if is_damage(error):
            try:
                moved = set_aside(self._path, COMPANIONS)
                fields = {"reason": reason, "moved_to": str(moved)}
            except OSError as other:
                reason = str(other)
            else:
                logger.error("the journal is damaged, and begun anew", extra={"fields": fields})
                return
        self._problem.failed(reason, path=str(self._path))

    def _went_well(self, lost: int, last: bool) -> None:
        if lost:
            event = "rows of the journal are lost, frames go on"
            self._problem.failed(self._why_lost(last), event=event)
        elif self._problem.went_well(rows_lost=self._lost):
            self._lost = 0

    def _why_lost(self, last: bool) -> str:
        if last:
            return "their frames ended after the journal began to close"
        if self._bounds.per_minute:
            return "more rows come than journal_write_mb_per_minute lets be written"
        return "more rows come than the disk takes"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _size(row: Values) -> int:
    """Returns the bytes that the row takes, somewhat too many rather than too few."""
    return ROW_BYTES + sum(2 * len(value) for value in row if isinstance(value, str))


class Journal:
    """Keeps a row of each frame in the file at `path`; `lost` is called with how many could not be
    kept, `written` with how many were.

    `answered` and `refused` are listeners: they take microseconds and raise nothing. The thread
    begins with the first row. Rows that an earlier process left are written at once.
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
        # What is limited by `per_minute` is not written twice.
        self._waiting = None if bounds.per_minute else WaitingRows(path.parent)
        self._queue = BackgroundQueue(
            "journal",
            self._write,
            capacity=WAITING_ROWS_MAX,
            delay_s=TURN_INTERVAL_S,
            idle_s=TURN_INTERVAL_S,
        )
        if self._waiting is not None and self._waiting.left:
            self._writer.inherit(self._waiting.left)
            self._waiting.left.clear()
            self._queue.wake()

    def answered(self, event: FrameAnswered) -> None:
        self._take(answered(event))

    def refused(self, refusal: FrameRefused) -> None:
        self._take(refused(refusal))

    def _take(self, row: Values) -> None:
        submit = self._queue.submit
        if not (submit(row) if self._waiting is None else self._waiting.put(row, submit)):
            self._loss.add(1)

    def _write(self, rows: deque[Values]) -> None:
        last = self._queue.closed
        self._writer.turn(rows, time.time(), time.monotonic(), last=last)
        if self._waiting is not None:
            self._waiting.settle(self._writer.inherited, rows)
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
        """Writes the rows that wait, whatever the budget, and closes the file. What can't be
        written is left for the next process if it is kept, and else lost, as later rows are."""
        if rows := self._queue.close(STOP_TIMEOUT_S):
            fields = {"rows": rows}
            if self._waiting is not None and self._waiting.hold(rows):
                event = "rows of the journal wait for the next start"
            else:
                event = "rows of the journal are lost by the stop"
                self._loss.add(rows)
            logger.error(event, extra={"fields": fields})
        if self._waiting is not None:
            self._waiting.close()
