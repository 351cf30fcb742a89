"""Log lines, written by a thread of their own so that no frame waits for the disk or a pipe."""

import logging
import logging.handlers
import queue
import sys
from datetime import UTC, datetime

import msgspec

LOGGER = "lineside"


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
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items())
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Queue(logging.handlers.QueueHandler):
    """Hands records over as they are: they never leave this process, so nothing is pickled."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


def start(level: str, form: str) -> logging.handlers.QueueListener:
    """Sets the `lineside` logger up to write to standard error through a queue.

    Returns the started listener; its `stop()` writes what is left.
    """
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(lines, stream)
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [_Queue(lines)]
    logger.setLevel(level.upper())
    logger.propagate = False
    listener.start()
    return listener
