"""The append-only history of a run: one JSON line for each thing that a client, an output, a fault
or the journal saw.

An operation begins with `invoke` and has at most one end: `ok`, `refused` or `lost`. Times are
seconds of time.monotonic(), which all processes of one machine share.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One line. op: names the operation, or the fault. kind: `frame`, `job`, `fault`, ... event:
    `invoke`, `ok`, `refused`, `lost`, or an event of its kind."""

    at: float
    op: str
    kind: str
    event: str
    fields: dict[str, Any]


class History:
    """Writes entries to the file at `path`, for any thread. An entry is handed to the kernel before
    `record` returns, so that a run that ends early can be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("a", encoding="utf-8")

    def record(self, op: str, kind: str, event: str, **fields: Any) -> None:
        with self._lock:
            line = json.dumps([time.monotonic(), op, kind, event, fields])
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()


def read_history(*paths: Path) -> list[Entry]:
    """Return the entries of files, by time. A last line that a killed process left unfinished is
    left out."""
    entries = [entry for path in paths for entry in _read_file(path)]
    return sorted(entries, key=lambda entry: entry.at)


def _read_file(path: Path) -> Iterator[Entry]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield Entry(*json.loads(line))
