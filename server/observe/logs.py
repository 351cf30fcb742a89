"""The log: its lines, written by a thread of their own so that no frame waits for the disk or a
pipe; lines that are left out because there are many like them; and faults that last."""

import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from server.system.background import BackgroundQueue
from server.values.wording import hide_secrets

logger = logging.getLogger(__name__)

LOGGER = "server"
WAITING_LINES_MAX = 10_000
LINES_PER_WRITE = 100
# Seconds between two writes; lines of a warning or worse don't wait.
WRITE_INTERVAL_S = 0.1
# Seconds for which a stop waits for a reader that takes nothing.
STOP_TIMEOUT_S = 5.0
THROTTLE_WINDOW_S = 60.0
# Error code and route of a request that failed.
Kind = tuple[str, str]


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339), level, event, and the fields given as `extra`'s
    `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_text:
            line["traceback"] = record.exc_text
        return hide_secrets(msgspec.json.encode(line).decode())


class TextFormatter(logging.Formatter):
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={_shown(v)}" for k, v in getattr(record, "fields", {}).items())
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return hide_secrets(f"{line}\n{record.exc_text}" if record.exc_text else line)


def _shown(value: object) -> str:
    """Returns `value` as text without line breaks."""
    text = str(value)
    return text if text.isprintable() else repr(text)


class LogWriter(logging.Handler):
    """Hands records to a thread that writes all that have come in one go: on a busy machine, waking
    it for each costs four switches between threads a frame.

    If the thread can't keep up, lines are dropped and counted rather than kept: memory is for
    frames. `lock`, the library's, guards `_dropped`.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._dropped = 0
        self._queue = BackgroundQueue(
            "log", self._write, capacity=WAITING_LINES_MAX, delay_s=WRITE_INTERVAL_S
        )

    @property
    def waiting(self) -> int:
        """Lines that have not been written."""
        return self._queue.waiting

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            # A traceback holds its frames, and they hold the request's body.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        if not self._queue.submit(record, urgent=record.levelno >= logging.WARNING):
            self._dropped += 1

    def _write(self, records: deque[logging.LogRecord]) -> None:
        while batch := [records.popleft() for _ in range(min(LINES_PER_WRITE, len(records)))]:
            text = "".join(self._line(record) for record in batch)
            # If nobody reads, there is nobody to notify.
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
        with self.lock or nullcontext():
            dropped = self._dropped
            self._dropped = 0
        if dropped:
            fields = {"fields": {"lines": dropped}}
            logging.getLogger(LOGGER).warning("log lines dropped", extra=fields)

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception:  # noqa: BLE001 - as every handler of the library does
            self.handleError(record)
            return ""

    def stop(self) -> None:
        """Writes the lines that wait, and returns when that is done, or nothing was written for
        STOP_TIMEOUT_S seconds."""
        before = self.waiting + 1
        while (waiting := self._queue.close(STOP_TIMEOUT_S)) and waiting < before:
            before = waiting


def start(level: str, form: str) -> LogWriter:
    """Sets the `lineside` logger up to write to standard error by a thread, which is started.

    `stop()` of what is returned writes what is left.
    """
    writer = LogWriter(sys.stderr)
    writer.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [writer]
    logger.setLevel(level.upper())
    logger.propagate = False
    return writer


class LogThrottle:
    """Limits the lines of requests that failed alike, by error code and route, to a few a minute,
    then logs how many were left out: a camera that sends damaged frames, or a line that overloads
    the server, would else fill the disk with one sentence.

    `_lock` guards `_began`, `_written`, `_omitted` and `_timer`. `_written` counts the lines of the
    minute that began at `_began`, `_omitted` those left out since the last summary. The timer runs
    only while there is something to sum up.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """most: lines a minute of each kind; 0: all."""
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._began = -THROTTLE_WINDOW_S
        self._written: Counter[Kind] = Counter()
        self._omitted: Counter[Kind] = Counter()
        self._timer: threading.Timer | None = None

    def passes(self, code: str, route: str) -> bool:
        """Returns whether the line of a request with this error may be written, else counts it."""
        if not self._most:
            return True
        with self._lock:
            now = self._clock()
            if now - self._began >= THROTTLE_WINDOW_S:
                self._written.clear()
                self._began = now
            if self._written[code, route] < self._most:
                self._written[code, route] += 1
                return True
            self._omit((code, route))
            return False

    def omit(self, code: str, route: str) -> None:
        """Counts a request that gets no line of its own."""
        with self._lock:
            self._omit((code, route))

    def _omit(self, kind: Kind) -> None:
        self._omitted[kind] += 1
        if self._timer is None:
            self._timer = threading.Timer(THROTTLE_WINDOW_S, self.summarize)
            self._timer.daemon = True
            self._timer.start()

    def summarize(self) -> None:
        """Logs how many requests of each kind were left out since the last summary. To be called
        once more before the log ends."""
        with self._lock:
            omitted = self._omitted
            self._omitted = Counter()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
        for (code, route), requests in omitted.items():
            fields = {"code": code, "route": route, "requests": requests}
            logger.info("requests without a line of their own", extra={"fields": fields})


class ProblemLog:
    """Logs `begins`, as an error, with the first of several failures in a row, and `ends` once it
    goes well again. For any thread; `_lock` guards `_reason`."""

    def __init__(self, begins: str, ends: str) -> None:
        self._begins = begins
        self._ends = ends
        self._lock = threading.Lock()
        self._reason = ""

    @property
    def failing(self) -> bool:
        """True from the first failure until it goes well again."""
        return bool(self._reason)

    def failed(self, reason: str, *, event: str = "", **fields: object) -> None:
        """Logs a failure, as `event` if it is given, unless the one before it was logged."""
        with self._lock:
            first = not self._reason
            self._reason = reason
        if first:
            logger.error(event or self._begins, extra={"fields": {"reason": reason, **fields}})

    def went_well(self, **fields: object) -> bool:
        """Logs the end of the failures, if there were any, and returns whether there were."""
        with self._lock:
            reason = self._reason
            self._reason = ""
        if reason:
            logger.info(self._ends, extra={"fields": {"after": reason, **fields}})
        return bool(reason)
