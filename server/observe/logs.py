"""Log lines, written by a thread of their own so that no frame waits for the disk or a pipe."""

import logging
import logging.handlers
import queue
import re
import sys
from datetime import UTC, datetime
from typing import cast

import msgspec

LOGGER = "lineside"
MOST_LINES = 10_000
# Seconds for which a stop waits for room in a full queue.
LONGEST_STOP = 5.0

# API keys (`server.store.keys`) and JSON Web Tokens, should a caller put one where it is logged.
SECRET = re.compile(r"ls_[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")


def hide_secrets(text: str) -> str:
    """`text` without anything that looks like a key or token."""
    return SECRET.sub("(secret)", text)


def looks_secret(text: str) -> bool:
    """Whether a name has what looks like a key or token in it. Unlike in a log line, where too much
    may be hidden, a key is one only where a word begins: a camera may be called wheels_..."""
    return any(
        match.start() == 0 or not text[match.start() - 1].isalnum()
        for match in SECRET.finditer(text)
    )


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
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items())
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return hide_secrets(f"{line}\n{record.exc_text}" if record.exc_text else line)


class _Queue(logging.handlers.QueueHandler):
    """Hands records to the writing thread. Where that can't keep up, lines are dropped and counted
    rather than kept: memory is for frames."""

    def __init__(self, lines: "queue.Queue[logging.LogRecord]") -> None:
        super().__init__(lines)
        self._lines = lines
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        if record.exc_info:
            # A traceback holds its frames, and they hold the request's body.
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1
        else:
            if self.dropped and self._lines.qsize() < MOST_LINES // 2:
                dropped, self.dropped = self.dropped, 0
                logging.getLogger(LOGGER).warning(
                    "log lines dropped", extra={"fields": {"lines": dropped}}
                )


class _Listener(logging.handlers.QueueListener):
    """The writing thread."""

    def enqueue_sentinel(self) -> None:
        # Where the queue is full the last word, None, waits for room; the library's would raise.
        cast("queue.Queue[object]", self.queue).put(None, timeout=LONGEST_STOP)


def start(level: str, form: str) -> logging.handlers.QueueListener:
    """Sets the `lineside` logger up to write to standard error through a queue.

    Returns the started listener; its `stop()` writes what is left, and raises queue.Full where
    nothing has been written for LONGEST_STOP seconds.
    """
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    lines: queue.Queue[logging.LogRecord] = queue.Queue(MOST_LINES)
    listener = _Listener(lines, stream)
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [_Queue(lines)]
    logger.setLevel(level.upper())
    logger.propagate = False
    listener.start()
    return listener
