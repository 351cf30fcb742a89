"""Fuzzes what a request's line and headers say: queries, moments, addresses, logins, traces."""

import math
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from werkzeug.datastructures import Headers

from fuzz.target import Target, promise
from server.api.journal import JournalQuery
from server.api.recognize.deadlines import likely_cause, parse_instant
from server.api.recognize.options import parse_frame_options
from server.config.settings import Settings
from server.http.access.caller import Caller, credentials, identify, passwords
from server.http.access.digest import DigestLogins, response
from server.http.access.origins import OriginCheck, parse_origin
from server.http.access.proxies import TrustedProxies
from server.http.access.sessions import Sessions, session_cookie, session_values
from server.http.body.image import query_values, to_options
from server.http.body.reading import coding_of
from server.http.wsgi import normal
from server.store.journal.database import JournalFile
from server.store.journal.reader import ENCODERS, Filter, JournalReader
from server.store.journal.schema import COLUMNS
from server.store.keys import DIGEST_HASHES, DIGEST_REALM, RIGHTS, KeyRing, add_key
from server.values.trace import read_trace, trace_headers

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ROWS = 40


def _environ(data: bytes) -> dict[str, Any]:
    """A WSGI environment with the headers of the lines `NAME: VALUE` of an input, which have no
    control characters: no HTTP server lets them through."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "REMOTE_ADDR": "127.0.0.1",
        "QUERY_STRING": "",
        "wsgi.url_scheme": "http",
    }
    for line in data.decode("latin-1").split("\n"):
        name, colon, value = line.partition(":")
        if colon and name.isascii():
            text = "".join(letter for letter in value if letter >= " " and letter != "\x7f")
            environ["HTTP_" + name.upper().replace("-", "_")] = text.strip()
    return environ


def _headers(data: bytes) -> None:
    environ = _environ(data)
    TrustedProxies(("127.0.0.1", "10.0.0.0/8", "fd00::/8")).apply(environ)
    check = OriginCheck(Settings(allowed_hosts=("*.example",)), loopback=False)
    check.refusal(environ)
    check.refusal(environ, strict=True, page=True)
    parse_origin(environ.get("HTTP_ORIGIN", ""))
    trace = read_trace(environ.get("HTTP_TRACEPARENT", ""), environ.get("HTTP_TRACESTATE", ""))
    for value in trace_headers(trace).values():
        promise(value.isprintable() or "\t" in value, "a trace that can't be sent")
    coding_of(environ)


class _Logins:
    """Keys, passwords, cookies and digest logins. `{nonce}` in an input is a nonce that is good
    now, `{response}` the right answer to it."""

    def __init__(self) -> None:
        file = Path(tempfile.mkdtemp()) / "keys.jsonl"
        add_key(file, "cam", RIGHTS, now=datetime.now(UTC), digest_login=True)
        self._ring = KeyRing(file)
        self._digest = DigestLogins(self._ring)
        self._sessions = Sessions()
        self._secret = self._ring.current()[0].digest["MD5"]

    def run(self, data: bytes) -> None:
        nonce = self._digest.challenges(stale=False)[0].rpartition('nonce="')[2].rstrip('"')
        named = {"nonce": nonce, "nc": "00000001", "cnonce": "c", "qop": "auth", "uri": "/v1"}
        right = response("MD5", self._secret, named, "GET")
        data = data.replace(b"{nonce}", nonce.encode()).replace(b"{response}", right.encode())
        environ = _environ(data)
        given = Headers({"Authorization": environ.get("HTTP_AUTHORIZATION", "")})
        given.add("X-API-Key", environ.get("HTTP_X_API_KEY", ""))
        calls: list[Callable[[], object]] = []
        login = environ.get("HTTP_AUTHORIZATION", "")
        if login[:7].lower() == "digest ":
            calls.append(lambda: self._digest.find(login, environ, "/v1"))
        for secret in (*credentials(given), *passwords(given)):
            calls.append(lambda secret=secret: identify(secret, self._ring, None))  # type: ignore[misc]
        for value in session_values(environ):
            calls.append(lambda value=value: self._sessions.caller(value))  # type: ignore[misc]
        cookie = session_cookie(environ, "x")
        promise("\n" not in cookie and "\r" not in cookie, "a cookie of two lines")
        refused: list[Exception] = []
        for call in calls:
            try:
                found = call()
                promise(not isinstance(found, Caller), "a stranger was let in")
            except Exception as error:
                if not TARGET_OF_CLIENTS.is_refusal(error):
                    raise
                refused.append(error)


def _nothing(data: bytes) -> None: ...


TARGET_OF_CLIENTS = Target("", _nothing, ())


def _moment(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    instant = parse_instant(text)
    promise(math.isfinite(instant), f"the moment {instant}")
    promise(bool(likely_cause(time.time() - instant, text)), "no cause")


def _query(data: bytes) -> None:
    text = data.decode("utf-8", "replace").encode().decode("latin-1")
    parse_frame_options(text)


def _path(data: bytes) -> None:
    path = normal(data.decode("latin-1"))
    promise("//" not in path, "two slashes")


class _Journal:
    """Queries of a journal that has ROWS rows."""

    def __init__(self) -> None:
        self._file = Path(tempfile.mkdtemp()) / "journal.db"
        writer = JournalFile(self._file, 1 << 26, 1 << 20)
        row: dict[str, Any] = dict.fromkeys(COLUMNS[1:])
        row |= {"request_id": "a", "cached": 0, "status": 200, "camera": "st4", "version": 1}
        writer.write([(*{**row, "time": 1767225600.0 + at}.values(),) for at in range(ROWS)])
        writer.close()

    def run(self, data: bytes) -> None:
        values = query_values(data.decode("utf-8", "replace").encode().decode("latin-1"))
        query = to_options(JournalQuery, values)
        fields = {name: getattr(query, name) for name in Filter.__struct_fields__}
        for name in ("since", "until"):
            if fields[name] is not None:
                fields[name] = parse_instant(fields[name], name)
        reader = JournalReader(self._file, Filter(**fields))
        try:
            rows = reader.page(query.order or "newest", min(query.limit or 100, 1000), query.cursor)
            promise(len(rows) <= ROWS, "more rows than there are")
            for encode in ENCODERS.values():
                list(encode(iter([rows])))
        finally:
            reader.close()


def targets() -> tuple[Target, ...]:
    digest = b'username="cam", realm="%s", nonce="{nonce}", uri="/v1", nc=00000001, cnonce="c"' % (
        DIGEST_REALM.encode()
    )
    login = b"Authorization: Digest " + digest + b', qop=auth, response="{response}", algorithm='
    hashes = tuple(name.encode() for name in DIGEST_HASHES)
    moments = (b"1767225600.25", b"2026-01-01T00:00:00.250Z", b"2026-01-01T02:00:00+02:00", b"0")
    frame = b"model=parts&top_k=3&threshold=0.5&camera=st4&captured_at=1767225600&deadline_ms=200"
    rows = b"camera=st4&since=2026-01-01T00:00:00Z&until=1767225620&order=oldest&limit=5&cursor=3"
    return (
        Target(
            "headers",
            _headers,
            (
                b"X-Forwarded-For: 1.2.3.4, [fd00::1]:80, 10.0.0.7:99\nX-Forwarded-Proto: https",
                b"Host: a.example:8080\nOrigin: http://a.example:8080\nSec-Fetch-Site: same-origin",
                b"traceparent: " + TRACE + b"\ntracestate: a=1,b=2\nContent-Encoding: gzip",
            ),
            (b"X-Forwarded-For: ", b"%eth0", b"::ffff:1.2.3.4", b"Host: ", b"Origin: http://"),
        ),
        Target(
            "logins",
            _Logins().run,
            (
                *(login + name for name in hashes),
                b"Authorization: Bearer ls_x, Basic Y2FtOmxzX3g=\nX-API-Key: ls_y, z",
                b'Host: a:8080\nCookie: lineside-8080=abc; lineside=def; x="y\\073"',
            ),
            (
                *hashes,
                b"nc=fffffffff",
                b"{nonce}",
                b"username*=utf-8''%ff",
                b"Cookie: ",
                b"lineside=",
            ),
        ),
        Target("moments", _moment, moments, (b"T", b"Z", b"+14:00", b"9999", b"24:00:00", b".")),
        Target("query", _query, (frame,), (b"&captured_at=", b"&version=", b"&deadline_ms=", b"%")),
        Target("paths", _path, (b"/v1/recognize", b"//v2///models/a%2fb/../infer/")),
        Target(
            "journal", _Journal().run, (rows,), (b"&since=", b"&until=", b"&version=", b"&cached=")
        ),
    )
