"""The file of the table of jobs: opened, locked among threads, rebuilt, and read."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from server.errors import JobsUnavailableError, StorageError
from server.store.jobs.records import (
    COLUMNS,
    FRAME_COLUMNS,
    SCHEMA,
    UPGRADES,
    FrameRecord,
    JobRecord,
    frame_of,
    is_intact,
    job_of,
)
from server.store.jobs.recovery import finish_rebuild, rebuild
from server.system.sqlite import OpenFiles, check_plain, check_whole, is_damage, open_database

# Seconds for which a thread waits until another is done with the file.
LOCK_TIMEOUT_S = 2.0


class JobFile:
    """The database at `path`, used by one thread at a time. `_lock` guards `_connection`, None
    while the file can't be used, and `_files`, which detects that the file is lost.

    Raises JobsUnavailableError if the file can't be read or written. A file that is damaged, or was
    deleted, replaced or cut, is rebuilt from what can be read of it; the next use succeeds.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._files: OpenFiles | None = None
        with self._faults():
            self._open()

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, for the length of the block."""
        # A thread that waits here is one that frames and probes need.
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise JobsUnavailableError(f"{self._path} is busy: its disk is slow", retry_after=5)
        try:
            with self._faults():
                connection = self._usable()
                try:
                    yield connection
                except sqlite3.Error as error:
                    if is_damage(error):
                        self._rebuild(str(error))
                    raise
        finally:
            self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction, which is on the disk when the block has ended."""
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                # Otherwise what is acknowledged now would be in a file that nobody finds.
                self._check_there()
                connection.execute("COMMIT")
            finally:
                with suppress(sqlite3.ProgrammingError):  # it is closed, and rebuilt
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")

    def check(self) -> None:
        """Read all of the file from the disk; rebuild one that is damaged."""
        with self.reading():
            check_whole(self._path)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise JobsUnavailableError(
                f"{self._path} can't be used: {error}", retry_after=1
            ) from None

    def _open(self) -> sqlite3.Connection:
        finish_rebuild(self._path)
        try:
            connection = open_database(self._path, SCHEMA, upgrades=UPGRADES)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            rebuild(self._path, None, str(error))
            connection = open_database(self._path, SCHEMA, upgrades=UPGRADES)
        self._connection = connection
        self._files = OpenFiles(self._path)
        return connection

    def _usable(self) -> sqlite3.Connection:
        if self._connection is not None and self._files is not None:
            if not (reason := self._files.lost()):
                return self._connection
            return self._rebuild(reason)
        return self._open()

    def _rebuild(self, reason: str) -> sqlite3.Connection:
        old = self._connection
        self._connection = None
        rebuild(self._path, old, reason)
        return self._open()

    def _check_there(self) -> None:
        if self._files is not None and (reason := self._files.lost()):
            raise sqlite3.OperationalError(reason)


class FrameReader:
    """Reads frames from the table at `path` while another process writes to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._files: OpenFiles | None = None

    def data(self, job: str, number: int) -> bytes | None:
        """Return a frame as received; None once its job is finished.

        Raises StorageError if its content is damaged, JobsUnavailableError if the file can't be
        read now.
        """
        try:
            return read_frame(self._opened(), job, number)
        except (sqlite3.Error, OSError) as error:
            self._close()
            raise JobsUnavailableError(f"{self._path} can't be read: {error}") from None

    def _opened(self) -> sqlite3.Connection:
        if self._files is not None and self._files.lost():
            self._close()
        if self._connection is None:
            check_plain(self._path)
            uri = f"file:{quote(str(self._path))}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None)
            self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            self._files = OpenFiles(self._path)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._files = None


def read_frame(db: sqlite3.Connection, job: str, number: int) -> bytes | None:
    """Return a frame as received; None once its job is finished. Raises StorageError if its
    content is damaged."""
    row = db.execute(
        "SELECT c.data, f.crc32 FROM contents c JOIN frames f USING (job, number)"
        " WHERE c.number = ? AND c.job = (SELECT number FROM jobs WHERE id = ?)",
        (number, job),
    ).fetchone()
    if row is None:
        return None
    if not isinstance(row[0], bytes) or not is_intact(*row):
        raise StorageError(f"frame {number} of the job is not as it was kept: its file is damaged")
    return row[0]


def read_jobs(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[JobRecord]:
    """Return the jobs that `where` picks, with their frames: SQL with `values` for its question
    marks."""
    rows = db.execute(f"SELECT {COLUMNS} FROM jobs {where}", values).fetchall()
    return [job_of(row, _frames(db, row[0])) for row in rows]


def _frames(db: sqlite3.Connection, number: int) -> tuple[FrameRecord, ...]:
    rows = db.execute(
        f"SELECT {FRAME_COLUMNS} FROM frames WHERE job = ? ORDER BY number", (number,)
    )
    return tuple(map(frame_of, rows))
