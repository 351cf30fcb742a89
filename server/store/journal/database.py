"""The journal's SQLite file as its one writer sees it: rows in, the oldest out."""

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.store.journal.schema import COLUMNS, COLUMNS_OF, FORMAT, SCHEMA, Values
from server.system.sqlite import (
    CUT,
    DatabaseDamagedError,
    OpenFiles,
    check_place,
    check_tables,
)

PAGE_BYTES = 4096
# Rows of one INSERT. Each statement releases Python's lock and takes it again, which under load
# costs more than the statement does. Their values are far fewer than SQLite's limit of 32,766.
ROWS_PER_INSERT = 50
# Rows that one DELETE takes, so that no transaction grows long.
ROWS_PER_DELETE = 200
# Errors for values that SQLite can never keep, such as half of a surrogate pair.
UNUSABLE = (ValueError, OverflowError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
# Seconds that another process may hold the file before a write counts as failed.
LOCK_TIMEOUT_S = 1.0

_PLACES = f"({', '.join('?' for _ in COLUMNS[1:])})"
_INSERT = f"INSERT INTO answers ({', '.join(COLUMNS[1:])}) VALUES "
# The newest row stays, so that ids go on from there.
_DELETE = (
    "DELETE FROM answers WHERE id IN (SELECT id FROM answers WHERE {where} ORDER BY {order}"
    f" LIMIT {ROWS_PER_DELETE}) AND id < (SELECT max(id) FROM answers)"
)
_KNOWN = "SELECT 1 FROM answers WHERE " + " AND ".join(f"{name} IS ?" for name in COLUMNS[1:])
_TOO_OLD = _DELETE.format(where="time < ?", order="time")
_OLDEST = _DELETE.format(where="true", order="id")


class JournalFile:
    """The file at `path`, opened by the thread that uses it.

    Written ahead (WAL): readers never wait, and what was committed outlives kill -9; after a cut of
    power the last moments may be missing, and nothing is damaged (`synchronous = NORMAL`,
    sqlite.org/wal.html). `trim_to_size` keeps it within `most_bytes`, beside `wal_bytes` written
    ahead. Methods raise sqlite3.Error, and OSError; `is_damage` says which of them mean a damaged
    file.
    """

    def __init__(self, path: Path, most_bytes: int, wal_bytes: int) -> None:
        self.path = path
        self._most = most_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        check_place(path)
        self._base = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
        try:
            self._set_up(wal_bytes)
            self._files = OpenFiles(path, wal_bytes)
        except (sqlite3.Error, OSError):
            self.close()
            raise

    def _set_up(self, wal_bytes: int) -> None:
        run = self._base.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run(f"PRAGMA wal_autocheckpoint = {max(1, wal_bytes // PAGE_BYTES)}")
        run(f"PRAGMA journal_size_limit = {wal_bytes}")
        version = self._number("PRAGMA user_version")
        if version not in (0, FORMAT):
            raise DatabaseDamagedError(
                f"{self.path.name} is of format {version}, and this program writes {FORMAT}"
            )
        if version == FORMAT:
            self._add_columns()
        check_tables(self._base, SCHEMA)
        if version == 0:
            self._base.executescript(SCHEMA)

    def _add_columns(self) -> None:
        """Adds the columns that a predecessor of this program did not have, all or none."""
        missing = self._missing()
        if not missing or "id" in missing:  # without `id` it is no journal
            return
        run = self._base.execute
        run("BEGIN IMMEDIATE")
        try:
            for name in self._missing():  # another process may have been first
                run(f"ALTER TABLE answers ADD COLUMN {name}")
            run("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                run("ROLLBACK")
            raise

    def _missing(self) -> list[str]:
        there = {row[1] for row in self._base.execute(COLUMNS_OF)}
        return [name for name in COLUMNS if name not in there]

    def _number(self, query: str) -> int:
        return int(self._base.execute(query).fetchone()[0])

    def write(self, rows: Sequence[Values]) -> None:
        """Adds all rows, or none."""
        whole = len(rows) - len(rows) % ROWS_PER_INSERT
        run = self._base.execute
        run("BEGIN IMMEDIATE")
        try:
            for start in range(0, whole, ROWS_PER_INSERT):
                several = rows[start : start + ROWS_PER_INSERT]
                run(_SEVERAL, [value for row in several for value in row])
            self._base.executemany(_INSERT + _PLACES, rows[whole:])
            run("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk has rolled back by itself
                run("ROLLBACK")
            raise

    def without_known(self, rows: Sequence[Values]) -> list[Values]:
        """Return those of `rows` that are not in the file, also those that it can't hold."""
        return [row for row in rows if not self._knows(row)]

    def _knows(self, row: Values) -> bool:
        with suppress(*UNUSABLE):
            return self._base.execute(_KNOWN, row).fetchone() is not None
        return False

    def delete_older_than(self, time: float) -> bool:
        """Deletes some of the rows that are older than `time`, Unix seconds. Returns whether more
        may be left."""
        return self._base.execute(_TOO_OLD, (time,)).rowcount == ROWS_PER_DELETE

    def trim_to_size(self) -> bool:
        """Deletes some of the oldest rows if the size has no room for all; their room is used
        again. Returns whether there may still be too many."""
        used_pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        if used_pages * self._number("PRAGMA page_size") <= self._most:
            return False
        return self._base.execute(_OLDEST).rowcount > 0

    def lost(self) -> str:
        """Says why the file is not the one at `path` any more, or not whole; '' if it is."""
        return self._files.lost()

    def cut(self) -> bool:
        """Says whether bytes are missing from a file that is still there."""
        return self._files.still_named() and self._files.lost().endswith(CUT)

    def close(self) -> None:
        """Closes the file; the last to do so takes what was written ahead into it."""
        with suppress(sqlite3.Error):
            self._base.close()


_SEVERAL = _INSERT + ", ".join([_PLACES] * ROWS_PER_INSERT)
