"""Log lines, written by a thread of their own so that no frame waits for the disk or a pipe."""

import logging
import sys
import threading
from collections import deque
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from server.values.secret_text import hide_secrets

LOGGER = "server"
# Lines that wait at most, and of one write.
MOST_LINES, AT_ONCE = 10_000, 100
# Seconds between two writes; lines of a warning or worse don't wait.
EVERY = 0.1
# Seconds for which a stop waits for a reader that takes nothing.
LONGEST_STOP = 5.0


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
    """`value` within a line of text, of which it makes no second one."""
    text = str(value)
    return text if text.isprintable() else repr(text)


class LogWriter(logging.Handler):
    """Hands records to a thread that writes all that have come in one go: on a busy machine, waking
    it for each costs four switches between threads a frame.

    Where the thread can't keep up, lines are dropped and counted rather than kept: memory is for
    frames. `lock`, the library's, guards `_dropped`.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._records: deque[logging.LogRecord] = deque()
        self._dropped = 0
        self._wake, self._at_once, self._stopping = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Lines that have not been written."""
        return len(self._records)

    def emit(self, record: logging.LogRecord) -> None:
        """Leaves `record` to the thread."""
        if record.exc_info:
            # A traceback holds its frames, and they hold the request's body.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        if len(self._records) >= MOST_LINES:
            self._dropped += 1
            return
        self._records.append(record)
        if record.levelno >= logging.WARNING:
            self._at_once.set()
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait()
            self._at_once.wait(EVERY)
            self._at_once.clear()
            self._wake.clear()
            self._write()
        self._write()

    def _write(self) -> None:
        while some := [self._records.popleft() for _ in range(min(AT_ONCE, self.waiting))]:
            text = "".join(self._line(record) for record in some)
            # Where nobody reads, there is nobody to tell.
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
        with self.lock or nullcontext():
            dropped, self._dropped = self._dropped, 0
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
        """Writes what is left, and returns when that is done, or nothing was written for
        LONGEST_STOP seconds."""
        self._stopping = True
        self._at_once.set()
        self._wake.set()
        before = self.waiting + 1
        while self._thread.is_alive() and self.waiting < before:
            before = self.waiting
            self._thread.join(LONGEST_STOP)


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
