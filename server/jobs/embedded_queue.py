"""Celery's broker and result backend on one machine: a SQLite file shared by processes.

They stand in for Kombu's own file-based transports, which lose a message with the worker that was
killed after it took it, need another library, or bear no damaged file.

The file may be deleted, cut or damaged at any time: the first process to notice begins a new one,
and all others move to it. Messages are only wake-ups, and results are on their way to the table of
jobs: what is lost here is sent again.
"""

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any, TypeVar

from celery.backends.base import KeyValueStoreBackend
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str, ensure_bytes
from kombu.utils.json import dumps, loads

from server.system.files import make_folder, set_aside
from server.system.sqlite import COMPANIONS, OpenFiles, is_damage, open_database

logger = logging.getLogger(__name__)
T = TypeVar("T")

FILE = "jobs-queue.db"
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, message TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, at REAL NOT NULL
);
"""
# Connections to lost files that a process keeps open.
LOST_MAX = 8
# Seconds to wait until no other process opens the file, and between two tries.
LOCK_MAX_S, LOCK_INTERVAL_S = 2.0, 0.01
# Celery imports these by name.
TRANSPORT = "server.jobs.embedded_queue:Transport"
BACKEND = "server.jobs.embedded_queue:Backend"


class QueueFile:
    """One process's connection to the file. `_lock` guards `_connection`, `_files`, which detects
    that the file is lost, and `_lost`, connections to files that were lost.

    Methods raise sqlite3.Error or OSError; for a file that was lost or is damaged only if no new
    one can be begun.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # Kept open, since the last to close one removes, by name, the log of the file that is there
        # now.
        self._lost: deque[sqlite3.Connection] = deque(maxlen=LOST_MAX)
        with self._alone():
            self._connection, self._files = self._open()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other process begin, set aside or open the file meanwhile. Of two that begin a new
        one at once, SQLite would fail in one, or each would go on with a file of its own.

        Goes on all the same if the folder can't be locked: another process may be stopped while it
        has the lock, and somebody else may lock the folder."""
        make_folder(self._path.parent)
        with ExitStack() as stack:
            # SQLite does not need the right to read the folder.
            with suppress(PermissionError):
                folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, folder)
                if _lock(folder):
                    # A child that was forked meanwhile would keep it locked.
                    stack.callback(fcntl.flock, folder, fcntl.LOCK_UN)
            yield

    def _open(self) -> tuple[sqlite3.Connection, OpenFiles]:
        try:
            connection = open_database(self._path, SCHEMA, "NORMAL")
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._set_aside(str(error))
            connection = open_database(self._path, SCHEMA, "NORMAL")
        return connection, OpenFiles(self._path)

    def _set_aside(self, reason: str) -> None:
        moved = set_aside(self._path, COMPANIONS)
        self._log_rebuilt(reason, str(moved))

    def _log_rebuilt(self, reason: str, moved: str | None = None) -> None:
        fields = {"path": str(self._path), "reason": reason, "moved_to": moved}
        logger.error("the queue of jobs was rebuilt, no job is lost", extra={"fields": fields})

    def _rebuild(self, reason: str) -> None:
        """Move to a new file, or to the one that another process has begun."""
        if self._files.still_named():
            self._set_aside(reason)
        elif not self._path.exists():
            self._log_rebuilt(reason)
        old = self._connection
        self._connection, self._files = self._open()
        self._lost.append(old)

    def _do(self, use: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `use` returns for the connection, or for one to a new file if the old one is
        found damaged."""
        with self._lock:
            if reason := self._files.lost():
                with self._alone():
                    self._rebuild(reason)
            try:
                return use(self._connection)
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                with self._alone():
                    self._rebuild(str(error))
            return use(self._connection)

    def run(self, statement: str, *values: object) -> list[Any]:
        """Return the rows of one statement, committed by itself."""
        return self._do(lambda connection: connection.execute(statement, values).fetchall())

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _lock(folder: int) -> bool:
    """Lock the open folder; return False if others keep it locked, or where there are no locks."""
    give_up = time.monotonic() + LOCK_MAX_S
    while time.monotonic() < give_up:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(LOCK_INTERVAL_S)
        except OSError:
            return False
    return False


def renew(path: Path) -> None:
    """Empty the queue, or begin a new file if it is damaged. Raises sqlite3.Error or OSError."""
    file = QueueFile(path)
    file.run("DELETE FROM messages")
    file.close()


class Channel(virtual.Channel):
    """Kombu's queues as rows; the oldest message goes first, to one receiver."""

    supports_fanout = False

    @property
    def _file(self) -> QueueFile:
        file: QueueFile = self.connection.file
        return file

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self._file.run("INSERT INTO messages (queue, message) VALUES (?, ?)", queue, dumps(message))

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        # Looking before taking spares the file a write with every look.
        if not self._size(queue):
            raise Empty
        rows = self._file.run(
            "DELETE FROM messages WHERE id = (SELECT min(id) FROM messages WHERE queue = ?)"
            " RETURNING message",
            queue,
        )
        if not rows:
            raise Empty
        message: dict[str, Any] = loads(bytes_to_str(rows[0][0]))
        return message

    def _size(self, queue: str) -> int:
        return int(self._file.run("SELECT count(*) FROM messages WHERE queue = ?", queue)[0][0])

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        self._file.run("DELETE FROM messages WHERE queue = ?", queue)
        return size


class Transport(virtual.Transport):
    """Kombu's transport of `Channel`; its transport option `path` names the file."""

    Channel = Channel
    driver_type = "sqlite"
    driver_name = "sqlite3"
    polling_interval = 0.05
    connection_errors = (*virtual.Transport.connection_errors, sqlite3.OperationalError)

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)
        self._path = Path(client.transport_options["path"])
        self.file: QueueFile

    def establish_connection(self) -> Any:
        """Open the file. Raises sqlite3.Error or OSError."""
        self.file = QueueFile(self._path)
        return super().establish_connection()

    def close_connection(self, connection: Any) -> None:
        """Close the channels, then the file."""
        super().close_connection(connection)
        self.file.close()


class Backend(KeyValueStoreBackend):
    """Celery's result backend: values as rows."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file = QueueFile(Path(self.app.conf.broker_transport_options["path"]))

    def get(self, key: str | bytes) -> bytes | None:
        rows = self._file.run("SELECT value FROM results WHERE key = ?", bytes_to_str(key))
        return rows[0][0] if rows else None

    def mget(self, keys: Iterable[str | bytes]) -> Iterator[bytes | None]:
        return (self.get(key) for key in keys)

    def set(self, key: str | bytes, value: str | bytes) -> None:
        """Set a value, until `cleanup` finds it old."""
        self._file.run(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?)",
            bytes_to_str(key),
            ensure_bytes(value),
            time.time(),
        )

    def delete(self, key: str | bytes) -> None:
        self._file.run("DELETE FROM results WHERE key = ?", bytes_to_str(key))

    def cleanup(self) -> None:
        """Remove values older than `result_expires`."""
        self._file.run("DELETE FROM results WHERE at < ?", time.time() - float(self.expires))
