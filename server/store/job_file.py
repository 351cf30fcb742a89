"""The file of the table of jobs: who may use it when, and the reading of jobs out of it."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.errors import JobsUnavailableError
from server.store.job_records import FrameRecord, JobRecord
from server.store.job_rows import COLUMNS, FRAME_COLUMNS, SCHEMA, frame_of, job_of
from server.store.sqlite import open_database

# Seconds for which one waits until another is done with the file.
PATIENCE = 2.0


class JobFile:
    """The database at `path`, of one thread at a time. `_lock` guards `_connection`.

    Whatever can't be read or written raises JobsUnavailableError.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        try:
            self._connection = open_database(path, SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise JobsUnavailableError(f"{path} can't be used: {error}") from None

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for the length of the block."""
        # Whoever waits keeps a thread that frames and probes need.
        if not self._lock.acquire(timeout=PATIENCE):
            raise JobsUnavailableError(f"{self._path} is busy: its disk is slow", retry_after=5)
        try:
            yield self._connection
        except sqlite3.Error as error:
            raise JobsUnavailableError(f"{self._path} can't be used: {error}") from None
        finally:
            self._lock.release()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when the block has ended."""
        with self.reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")


def read_jobs(db: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[JobRecord]:
    """The jobs that `where`, SQL with `values` for its question marks, picks, with their frames."""
    rows = db.execute(f"SELECT {COLUMNS} FROM jobs {where}", values).fetchall()
    return [job_of(row, _frames(db, row[0])) for row in rows]


def _frames(db: sqlite3.Connection, number: int) -> tuple[FrameRecord, ...]:
    rows = db.execute(
        f"SELECT {FRAME_COLUMNS} FROM frames WHERE job = ? ORDER BY number", (number,)
    )
    return tuple(map(frame_of, rows))
