"""SQLite files that outlive a cut of power."""

import os
import sqlite3
from pathlib import Path
from typing import Literal


def open_database(
    path: Path, schema: str, synchronous: Literal["FULL", "NORMAL"] = "FULL"
) -> sqlite3.Connection:
    """The database at `path` in autocommit mode, made by `schema` where it is new, usable from any
    thread that holds the caller's lock.

    With FULL a committed transaction is on the disk; with NORMAL the last ones may be lost to a
    cut of power, and the file stays whole (https://sqlite.org/wal.html). Raises sqlite3.Error or
    OSError.
    """
    _make_folder(path.parent)
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


def _make_folder(folder: Path) -> None:
    """Makes `folder`, and its entry in its parent last."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
