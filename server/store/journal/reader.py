"""The journal read: filtered, in pages, while it is written or without any server."""

import csv
import io
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from msgspec import Meta

from server.errors import JournalUnreadableError
from server.store.journal.schema import COLUMNS, COLUMNS_OF, FORMAT, Row
from server.system.clock import rfc3339
from server.system.sqlite import DatabaseDamagedError, check_plain, is_damage, mend_index

Order = Literal["newest", "oldest"]
Format = Literal["json", "csv", "jsonl"]
Text = Annotated[str, Meta(max_length=128)]

# Rows read at a time for an export, so that frames get their turn between them.
ROWS_PER_PAGE = 500
# Primary result codes (sqlite.org/rescode.html) of a file beside which nothing can be written.
UNWRITABLE = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
# A spreadsheet takes a cell for a formula if it begins with one of these (OWASP, CSV Injection);
# full-width forms count as the plain ones in East Asian versions.
FORMULA = r"=+\-@\uff1d\uff0b\uff0d\uff20"
# A cell begins at the start of a text, and after each character at which a spreadsheet may split a
# line, whatever this file's separator is. Blanks and quotes before the formula do not disarm it.
CELL = re.compile(
    r"(^|[,;|\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029])"
    rf"(?=[\s\"\x00-\x1f\ufeff\u200b]*[{FORMULA}])|^(?=[\t\r\n])"
)


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Filters of rows, which must all hold. since, until: Unix seconds, the first included, the
    second not."""

    camera: Text | None = None
    part: Text | None = None
    model: Text | None = None
    version: Annotated[int, Meta(ge=1, lt=1 << 62)] | None = None
    label: Text | None = None
    verdict: Literal["pass", "fail", "unsure"] | None = None
    status: Annotated[int, Meta(ge=100, le=599)] | None = None
    code: Text | None = None
    request_id: Text | None = None
    cached: bool | None = None
    address: Text | None = None
    product: Text | None = None
    batch: Text | None = None
    vote: Literal["pass", "fail", "unsure"] | None = None
    since: float | None = None
    until: float | None = None


_TIMES = ("since", "until")
# `+time` keeps SQLite from the index by time, by which it would sort all rows for each page.
_CONDITIONS = {
    **{name: f"{name} = ?" for name in Filter.__struct_fields__ if name not in _TIMES},
    "since": "+time >= ?",
    "until": "+time < ?",
}


class JournalReader:
    """Rows of the file at `path` for which `wanted` holds.

    No transaction stays open between pages, so that the writer can always take its log into the
    file. Raises JournalUnreadableError if the file can't be read; one that is not there yet has
    no rows. To be closed.
    """

    def __init__(
        self, path: Path, wanted: Filter, on_damage: Callable[[], object] = lambda: None
    ) -> None:
        """`on_damage` is called if the file itself seems to be what is wrong."""
        self._path = path
        self._on_damage = on_damage
        filters = {
            name: value for name in _CONDITIONS if (value := getattr(wanted, name)) is not None
        }
        self._base = self._connect() if os.path.lexists(path) else None
        try:
            there = {row[1] for row in self._run(COLUMNS_OF)} if self._base else set()
            columns = (name if name in there else f"NULL AS {name}" for name in COLUMNS)
            self._select = f"SELECT {', '.join(columns)} FROM answers WHERE "
            # For a column that the file does not have yet, no row holds any value.
            lacking = {name for name in filters if name not in (*_TIMES, *there)}
            conditions = (_CONDITIONS[name] for name in filters if name not in lacking)
            self._where = " AND ".join(["false" if lacking else "true", *conditions])
            self._values = tuple(filters[name] for name in filters if name not in lacking)
            self.first, self.last = self._span(wanted) if self._base else (1, 0)
        except JournalUnreadableError:
            self.close()
            raise

    def _span(self, wanted: Filter) -> tuple[int, int]:
        """Returns the ids between which all wanted rows of this moment lie."""
        (version,) = self._run("PRAGMA user_version")[0]
        if version == 0:
            return 1, 0  # made a moment ago
        if version != FORMAT:
            raise JournalUnreadableError(
                f"the journal {self._path} is of format {version}, and this program reads {FORMAT}"
            )
        if wanted.since is None and wanted.until is None:
            ids = self._run("SELECT (SELECT min(id) FROM answers), (SELECT max(id) FROM answers)")
        else:
            span = (
                float("-inf") if wanted.since is None else wanted.since,
                float("inf") if wanted.until is None else wanted.until,
            )
            ids = self._run(
                "SELECT min(id), max(id) FROM answers WHERE time >= ? AND time < ?", span
            )
        first, last = ids[0]
        return (1, 0) if first is None else (first, last)

    def page(self, order: Order, limit: int, cursor: int | None = None) -> list[Row]:
        """Returns at most `limit` rows in `order`, beginning behind the row whose id is
        `cursor`."""
        if self._base is None or self.first > self.last:
            return []
        first, last, way = self.first, self.last, "ASC"
        if order == "newest":
            way = "DESC"
            last = last if cursor is None else min(last, cursor - 1)
        elif cursor is not None:
            first = max(first, cursor + 1)
        query = f"{self._select}{self._where} AND id BETWEEN ? AND ? ORDER BY id {way} LIMIT ?"
        rows = self._run(query, (*self._values, first, last, limit))
        try:
            return [_row(values) for values in rows]
        except (TypeError, ValueError, OverflowError, OSError):
            raise self._unreadable(DatabaseDamagedError("it has a row of other types")) from None

    def pages(
        self, order: Order, limit: int | None = None, cursor: int | None = None
    ) -> Iterator[list[Row]]:
        """Yields all rows there were when this reader was made, at most `limit`, some at a time."""
        wanted = limit
        while wanted is None or wanted > 0:
            size = ROWS_PER_PAGE if wanted is None else min(ROWS_PER_PAGE, wanted)
            rows = self.page(order, size, cursor)
            if not rows:
                return
            yield rows
            cursor = rows[-1].id
            wanted = None if wanted is None else wanted - len(rows)

    def _run(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        assert self._base is not None
        try:
            return self._base.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    def _connect(self) -> sqlite3.Connection:
        """Opens the file to be read only; if even that would write beside it, on a disk that can't
        be written, as a file that does not change."""
        for how in ("mode=ro", "mode=ro&immutable=1"):
            base = None
            try:
                check_plain(self._path)
                mend_index(self._path)
                base = sqlite3.connect(
                    f"file:{quote(str(self._path))}?{how}",
                    uri=True,
                    timeout=1.0,
                    check_same_thread=False,
                )
                base.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                return base
            except (sqlite3.Error, OSError) as error:
                if base is not None:
                    base.close()
                failure = error
                if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF not in UNWRITABLE:
                    break
        raise self._unreadable(failure)

    def _unreadable(self, error: Exception) -> JournalUnreadableError:
        if is_damage(error):
            self._on_damage()
        return JournalUnreadableError(
            f"the journal {self._path} can't be read: {error}", retry_after=5
        )

    def close(self) -> None:
        if self._base is not None:
            self._base.close()


def _row(values: Sequence[Any]) -> Row:
    number, time, *rest = values
    fields = dict(zip(COLUMNS[2:], rest, strict=True))
    fields["cached"] = bool(fields["cached"])
    return Row(number, rfc3339(time), **fields)


def as_csv(pages: Iterator[list[Row]]) -> Iterator[bytes]:
    """Yields the rows as comma-separated values (RFC 4180) with a line of names, UTF-8.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, also behind a
    character at which the spreadsheet may split the line.
    """
    yield _lines([COLUMNS])
    for rows in pages:
        yield _lines([_cell(value) for value in msgspec.structs.astuple(row)] for row in rows)


def _lines(rows: Any) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return CELL.sub(r"\1'", value) if isinstance(value, str) else value


def as_jsonl(pages: Iterator[list[Row]]) -> Iterator[bytes]:
    """Yields the rows as JSON, one a line (jsonlines.org)."""
    encoder = msgspec.json.Encoder()
    for rows in pages:
        yield encoder.encode_lines(rows)


ENCODERS: dict[str, Callable[[Iterator[list[Row]]], Iterator[bytes]]] = {
    "csv": as_csv,
    "jsonl": as_jsonl,
}
