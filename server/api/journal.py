"""GET /v1/journal: the answered frames, filtered, in pages or as one file."""

import threading
from contextlib import closing
from typing import Annotated

import msgspec
from flask import Response, request
from msgspec import Meta

from server.api.recognize.deadlines import parse_instant
from server.config.thread_budget import EXPORTING_REQUESTS_MAX
from server.errors import NotFoundError, OverloadedError
from server.http.body.image import read_options
from server.http.routes import ADMIN, JSON, route, to_json
from server.store.journal.reader import ENCODERS, Filter, Format, JournalReader, Order
from server.store.journal.schema import Row
from server.store.journal.writer import Journal

MEDIA: dict[str, Format] = {
    "application/json": "json",
    "text/csv": "csv",
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
}
CONTENT: dict[Format, str] = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
# Rows of a page: without `limit`, and at most.
PAGE_ROWS, PAGE_ROWS_MAX = 100, 1000
# Seconds that a reader waits for the rows of this moment to be written, to a disk that may be slow.
SETTLE_TIMEOUT_S = 10.0


class JournalQuery(Filter, frozen=True, kw_only=True):
    """Filters of rows, which must all hold, and how rows are sent. since, until: Unix seconds, or
    RFC 3339 with a zone; the first included, the second not. order: by default `newest` first in
    pages, `oldest` first in a file. limit: most rows, by default 100 a page and all in a file.
    cursor: `next` of the page before. format: `json` for pages, `csv` or `jsonl` for one file; by
    default as the header Accept says."""

    since: Annotated[str, Meta(max_length=64)] | None = None  # type: ignore[assignment]
    until: Annotated[str, Meta(max_length=64)] | None = None  # type: ignore[assignment]
    order: Order | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000_000_000)] | None = None
    cursor: Annotated[int, Meta(ge=0, lt=1 << 62)] | None = None
    format: Format | None = None


class JournalPage(msgspec.Struct, frozen=True):
    """Some rows. next: the `cursor` of the following ones; null if there are none now."""

    rows: tuple[Row, ...]
    next: int | None


def _read_query() -> tuple[JournalQuery, Filter]:
    """Return this request's query, and its filters with times in seconds. Raises
    InvalidFieldError."""
    query = read_options(JournalQuery, request)
    fields = {name: getattr(query, name) for name in Filter.__struct_fields__}
    for name in ("since", "until"):
        if fields[name] is not None:
            fields[name] = parse_instant(fields[name], name)
    return query, Filter(**fields)


def _format(query: JournalQuery) -> Format:
    if query.format is not None:
        return query.format
    best = request.accept_mimetypes.best_match(MEDIA, "application/json")
    return MEDIA[best]


def _file(
    reader: JournalReader, query: JournalQuery, form: Format, exports: threading.BoundedSemaphore
) -> Response:
    """Return all rows as one file, sent as fast as the client reads it. Raises OverloadedError if
    too many files are being sent."""
    if not exports.acquire(blocking=False):
        reader.close()
        raise OverloadedError(
            f"{EXPORTING_REQUESTS_MAX} files of the journal are being sent", retry_after=5
        )
    pages = reader.pages(query.order or "oldest", query.limit, query.cursor)
    response = Response(ENCODERS[form](pages), content_type=CONTENT[form])
    response.headers["Content-Disposition"] = f'attachment; filename="journal.{form}"'
    response.call_on_close(reader.close)
    response.call_on_close(exports.release)
    return response


class JournalRoutes:
    """Answers the rows of `journal`, None if it is switched off."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._exports = threading.BoundedSemaphore(EXPORTING_REQUESTS_MAX)

    @route(
        "GET",
        "/v1/journal",
        rights=ADMIN,
        query=JournalQuery,
        answer={JSON: JournalPage, "text/csv": str, "application/x-ndjson": str},
        errors=(400, 403, 404, 503),
    )
    def read(self) -> Response:
        """Return the frames that were answered, filtered: a page, or one file of all.

        Raises NotFoundError without a journal.
        """
        journal = self._journal
        if journal is None:
            raise NotFoundError("the journal is switched off on this server: its setting journal")
        query, wanted = _read_query()
        form = _format(query)
        journal.settle(SETTLE_TIMEOUT_S)
        reader = JournalReader(journal.path, wanted, journal.doubt)
        if form != "json":
            return _file(reader, query, form, self._exports)
        limit = min(query.limit or PAGE_ROWS, PAGE_ROWS_MAX)
        with closing(reader):
            rows = reader.page(query.order or "newest", limit, query.cursor)
        return to_json(JournalPage(tuple(rows), rows[-1].id if len(rows) == limit else None))
