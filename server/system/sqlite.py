"""SQLite files that outlive a cut of power, and the signs that one is not what it should be.

A file can be deleted, replaced, cut or overwritten under the connection that has it open. SQLite
notices few of these: it goes on writing into a file that has no name any more.
"""

import os
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from server.system.files import make_folder

# The files beside a database of this kind: the write-ahead log, and its index.
COMPANIONS = ("-wal", "-shm")
# The index's place among the files, and the bytes that it has at least
# (https://sqlite.org/walformat.html#the_wal_index_file_format).
INDEX, INDEX_MIN_BYTES = 2, 32_768
# Bytes that the log may keep on the disk when SQLite starts it again.
LOG_BYTES_MAX = 16 << 20
# Primary and extended result codes (sqlite.org/rescode.html) of a file that is no database, or no
# longer a whole one.
DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
SHORT = sqlite3.SQLITE_IOERR_SHORT_READ
# The answer of `OpenFiles.lost` for a file that has become shorter.
CUT = "was cut"
# How SQLite's messages about missing tables begin.
OTHER_TABLES = ("no such table", "no such column")


class DatabaseDamagedError(sqlite3.DatabaseError):
    """The file under the database's name is none of ours; the message says what it is."""


def is_damage(error: BaseException) -> bool:
    """Returns whether the file itself is damaged, and not its disk, its lock or its rights at
    fault."""
    if isinstance(error, DatabaseDamagedError):
        return True
    code = getattr(error, "sqlite_errorcode", None) or 0
    tables_gone = isinstance(error, sqlite3.Error) and str(error).startswith(OTHER_TABLES)
    return code & 0xFF in DAMAGED or code == SHORT or tables_gone


def files_of(path: Path) -> tuple[Path, ...]:
    """Returns the database at `path` and its companions."""
    return (path, *(path.with_name(path.name + end) for end in COMPANIONS))


def check_plain(path: Path) -> None:
    """Raises DatabaseDamagedError if anything but a plain file lies at `path` or in a companion's
    place: SQLite would wait for a FIFO."""
    for file in files_of(path):
        try:
            mode = file.stat().st_mode
        except FileNotFoundError:
            if file.is_symlink():
                raise DatabaseDamagedError(f"{file.name} is a link to nowhere") from None
            continue
        if not stat.S_ISREG(mode):
            raise DatabaseDamagedError(f"{file.name} is not a plain file")


def check_place(path: Path) -> None:
    """Does what `check_plain` does, also for a file that this process may not use although it may
    replace it. Raises OSError if it can't be looked at."""
    check_plain(path)
    for file in files_of(path):
        may = os.access(file, os.R_OK | os.W_OK) or not file.exists()
        if not may and os.access(file.parent, os.W_OK | os.X_OK):
            raise DatabaseDamagedError(f"{file.name} may not be read and written")


def check_tables(connection: sqlite3.Connection, schema: str) -> None:
    """Raises DatabaseDamagedError if the database holds something and lacks a table or a column of
    `schema`, and other sqlite3.Error if it can't be read."""
    columns_now = _columns(connection)
    if not columns_now:
        return
    with sqlite3.connect(":memory:") as model:
        model.executescript(schema)
        wanted = _columns(model)
    model.close()
    for table, columns in wanted.items():
        if missing := columns - columns_now.get(table, set()):
            raise DatabaseDamagedError(f"its table {table} has no column {min(missing)}")


def check_whole(path: Path) -> None:
    """Reads all of the database at `path`, which this process has open, from the disk: an open
    connection sees what it has in memory. Raises sqlite3.Error; `is_damage` says whether the file
    is damaged."""
    with closing(sqlite3.connect(path, timeout=1.0, isolation_level=None)) as connection:
        result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if result != "ok":
        raise DatabaseDamagedError(f"{path.name} is damaged: {result}")


def _columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    rows = connection.execute(
        "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c"
        " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
    )
    columns: dict[str, set[str]] = {}
    for table, column in rows:
        columns.setdefault(table, set()).add(column)
    return columns


def open_database(
    path: Path,
    schema: str,
    synchronous: Literal["FULL", "NORMAL"] = "FULL",
    upgrades: tuple[str, ...] = (),
) -> sqlite3.Connection:
    """Opens the database at `path` in autocommit mode, made by `schema` if it is new, usable from
    any thread that holds the caller's lock.

    With FULL a committed transaction is on the disk; with NORMAL the last ones may be lost to a cut
    of power, and the file stays whole (https://sqlite.org/wal.html). upgrades: statements that add
    to a file of an earlier release what it lacks, and fail on one that lacks nothing. Raises
    OSError, and sqlite3.Error; `is_damage` says whether the file itself is at fault.
    """
    make_folder(path.parent)
    check_place(path)
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA foreign_keys = ON")
        # The log may have grown in a burst: its room goes back to the disk.
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_MAX}")
        _upgrade(connection, upgrades)
        check_tables(connection, schema)
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _upgrade(connection: sqlite3.Connection, upgrades: tuple[str, ...]) -> None:
    for statement in upgrades:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError as error:
            # No such table: the file is new, or another's. Duplicate column: it has it already.
            if not str(error).startswith((*OTHER_TABLES, "duplicate column name")):
                raise


class OpenFiles:
    """The files of an open database as they were when it was opened; to be asked before each use.

    log_bytes: bytes to which SQLite itself may cut the log.
    """

    def __init__(self, path: Path, log_bytes: int = LOG_BYTES_MAX) -> None:
        self._log_bytes = log_bytes
        self._files = [(str(file), file.name) for file in files_of(path)]
        self._last_status = [_look(file) for file, _ in self._files]

    def still_named(self) -> bool:
        """Returns whether the database itself is still the file at its path."""
        now = _look(self._files[0][0])
        return (
            now is not None
            and self._last_status[0] is not None
            and now[:2] == self._last_status[0][:2]
        )

    def lost(self) -> str:
        """Says what happened to them since, '' if nothing did; takes a few microseconds.

        An index that was cut is extended to its old length, and SQLite writes it again: it is
        mapped into this process, which would crash if it read beyond the end. Raises OSError if
        that fails.
        """
        for number, (file, name) in enumerate(self._files):
            before, now = self._last_status[number], _look(file)
            if now is None and before is not None:
                return f"{name} was deleted"
            if now is None or before is None:
                self._last_status[number] = now
                continue
            if now[:2] != before[:2]:
                return f"{name} was replaced"
            if number == INDEX and now[2] < before[2]:
                os.truncate(file, before[2])
                continue
            least = before[2] if number == 0 else min(before[2], self._log_bytes)
            if now[2] < least:
                return f"{name} {CUT}"
            self._last_status[number] = now
        return ""


def mend_index(path: Path) -> None:
    """Makes the index of the database at `path` long enough to be read, if it was cut, for another
    connection than the one whose `OpenFiles` knows it. Raises OSError."""
    index = files_of(path)[INDEX]
    with suppress(FileNotFoundError):
        if index.stat().st_size < INDEX_MIN_BYTES:
            os.truncate(index, INDEX_MIN_BYTES)


def _look(file: str) -> tuple[int, int, int] | None:
    """Returns device, inode and size of a file; None if there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size
