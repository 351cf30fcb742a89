"""SQLite files that outlive a cut of power."""

import sqlite3
from pathlib import Path
from typing import Literal

from server.store.files import make_folder


def open_database(
    path: Path, schema: str, synchronous: Literal["FULL", "NORMAL"] = "FULL"
) -> sqlite3.Connection:
    """The database at `path` in autocommit mode, made by `schema` where it is new, usable from any
    thread that holds the caller's lock.

    With FULL a committed transaction is on the disk; with NORMAL the last ones may be lost to a
    cut of power, and the file stays whole (https://sqlite.org/wal.html). Raises sqlite3.Error or
    OSError.
    """
    make_folder(path.parent)
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        # What a burst made the log grow to is given back to the disk.
        connection.execute("PRAGMA journal_size_limit = 16777216")
        connection.executescript(schema)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
