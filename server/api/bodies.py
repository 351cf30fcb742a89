"""Bodies that do not come: how long a thread waits for one, and how many threads do.

The HTTP server's read of a body ends when the body does, so a client that stops sending would keep
a thread for as long as it likes, and a few dozen of them every thread there is. The server offers
no limit, nor does it tell a request's connection. But a request may be answered from any thread,
and the kernel tells how much was written to each connection. So what came too late is answered from
here, by an answer of a length like no other's, and the connection on which that was written is
shut for reading, which ends the read.
"""

import io
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import msgspec
from werkzeug.exceptions import RequestTimeout

from server.api.responses import error_body
from server.api.security import HEADERS
from server.errors import OverloadedError
from server.protocol import MOST_READING, PROTOCOL
from server.sockets import bytes_written, own_sockets, shut_for_reading

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# From MANY threads that wait for bodies on, each further one takes the place of the one that has
# waited longest, where that has had GRACE seconds.
MANY, GRACE = 48, 1.0
# Methods whose requests' bodies no route reads.
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
# Bytes by which an answer to what came too late is made longer.
PADDING = range(2000, 8000)
# The headers that the HTTP server adds, a date has always as many letters, and the phrases of its
# first line where they are not Python's.
PHRASES = {413: "Payload Too Large", 422: "Unprocessable Entity"}
ADDED = (("Server", "granian"), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"))
# Seconds that a piece of the body of a request that is already decided has to come before the
# client gets the answer, and that the rest has then before the connection is shut: a client that
# reads only once it has sent everything would else see a broken connection, not the answer.
DECIDED, LINGERING = 0.3, 2.0
# Seconds in which the HTTP server has written an answer that it was given, busy as it may be, and
# between two looks whether it has; LOOKS are made at least, where this process stood still.
WRITTEN, STEP, LOOKS = 2.0, 0.001, 50


class Answer(msgspec.Struct, frozen=True):
    """The answer to a request whose body decides nothing. data: JSON."""

    status: int
    headers: tuple[tuple[str, str], ...]
    data: bytes


class Body:
    """`wsgi.input` of one request. `since` is when the read in hand began, in seconds of
    time.monotonic(); `error` what every read ends in from now on, if anything. `answer` is set if
    the request is decided and the rest of the body is only drained; `sent` is when it was sent
    before the body's end, else 0; `connection`, of the thread that watches, is where an answer was
    written to: a descriptor, and all bytes written to it."""

    __slots__ = (
        *("_bodies", "_read", "_whole", "answer", "answered", "connection", "environ", "error"),
        *("sent", "since"),
    )

    def __init__(self, environ: dict[str, Any], bodies: "Bodies") -> None:
        self._bodies, self._read = bodies, environ["wsgi.input"].read
        self._whole = environ.get("CONTENT_LENGTH")
        self.environ: dict[str, Any] | None = environ
        self.since = self.sent = 0.0
        self.answer: Answer | None = None
        self.answered = False
        self.connection: tuple[int, int] | None = None
        self.error: RequestTimeout | OverloadedError | None = None

    def decide(self, answer: Answer) -> None:
        """Have `answer` sent while the rest of the body is read, if that takes long; the reads end
        soon after."""
        self.answer = answer

    def due(self, seconds: float) -> float:
        """Return when to stop waiting for this body, of those that have `seconds` to come."""
        if self.answer is None:
            return self.since + seconds
        return self.sent + LINGERING if self.sent else self.since + min(DECIDED, seconds)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; fewer only at the body's end.

        Raises RequestTimeout where they do not come in time, OverloadedError where too many
        threads wait for bodies.
        """
        # Asked for all there is, the HTTP server copies the body once and keeps no copy of its own.
        whole, self._whole = self._whole == str(size), None
        self._bodies.begin(self)
        try:
            data: bytes = self._read() if whole else self._read(size)
        finally:
            self._bodies.end(self)
        if self.error is not None:
            raise self.error
        return data


class Bodies:
    """WSGI middleware around `app` that ends each read of a body after `seconds`.

    `_lock` guards all that follows it: `_reading`, the bodies that threads wait for, the longest
    first; `_late`, those of them that are still to be answered; `_watching`, whether the thread
    that does so was started; `_next`, when it looks again.
    """

    def __init__(self, app: Wsgi, seconds: float) -> None:
        self._app, self._seconds = app, seconds
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._reading: dict[Body, None] = {}
        self._late: list[Body] = []
        self._watching, self._next = False, 0.0

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        if PROTOCOL not in environ or (environ.get("CONTENT_LENGTH", "0") == "0" and not chunked):
            return self._app(environ, start_response)
        if environ["REQUEST_METHOD"] in WITHOUT_BODY:
            return self._not_waited_for(environ, start_response)
        body = environ["wsgi.input"] = Body(environ, self)
        try:
            return self._app(environ, start_response)
        finally:
            # Else the two would keep each other, and the body with them, until they are collected.
            body.environ = None

    def _not_waited_for(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answers a request whose body means nothing (RFC 9110, 9.3) as if it had none, and has its
        connection closed, on which the body may still come."""
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(), "0"

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            return start_response(status, [*headers, ("Connection", "close")], *error)

        return self._app(environ, start)

    def begin(self, body: Body) -> None:
        """Before a read of `body`. Raises its error if it has one."""
        if body.error is not None:
            raise body.error
        body.since = time.monotonic()
        with self._lock:
            if len(self._reading) >= MANY:
                self._make_room(body)
            self._reading[body] = None
            if body.answer is not None and body.due(self._seconds) < self._next:
                self._wake.set()
            if not self._watching:
                self._watching = True
                self._next = body.due(self._seconds)
                threading.Thread(target=self._watch, name="bodies", daemon=True).start()

    def end(self, body: Body) -> None:
        """After a read of `body`."""
        with self._lock:
            del self._reading[body]

    def _make_room(self, body: Body) -> None:
        """Gives up the body that is waited for longest; else raises OverloadedError."""
        longest = next((other for other in self._reading if other.error is None), None)
        if (
            longest is None
            or body.since - longest.since < GRACE
            or len(self._reading) >= MOST_READING
        ):
            body.error = OverloadedError(
                f"{len(self._reading)} requests wait for their bodies, which is the most",
                retry_after=1,
            )
            raise body.error
        self._give_up(longest, body.since)
        self._wake.set()

    def _give_up(self, body: Body, now: float) -> None:
        body.error = RequestTimeout(
            f"the request's body had not come in whole after {now - body.since:.1f} s"
        )
        self._late.append(body)

    def _watch(self) -> None:
        """Life of the thread that answers what came too late."""
        left = 0.0
        while True:
            self._wake.wait(left)
            self._wake.clear()
            late, left = self._collect(time.monotonic())
            for body in late:
                # Without a descriptor to spare, this client keeps its thread, and others don't.
                with suppress(OSError):
                    self._answer(body)

    def _collect(self, now: float) -> tuple[list[Body], float]:
        """The bodies that are late at `now`, and the seconds until another one may be."""
        with self._lock:
            self._next = now + self._seconds
            for body in self._reading:
                if body.error is not None:
                    continue
                due = body.due(self._seconds)
                if due > now:
                    self._next = min(self._next, due)
                elif body.answer is not None and not body.sent:
                    body.sent = now
                    self._late.append(body)
                    self._next = min(self._next, body.due(self._seconds))
                else:
                    self._give_up(body, now)
            late, self._late = self._late, []
            return late, self._next - now

    def _answer(self, body: Body) -> None:
        """Answers in place of the thread that waits for `body`, and ends its wait, unless the rest
        of the body is still to be drained."""
        environ = body.environ
        if environ is None:
            return  # it came just now
        if not body.answered:
            body.answered = True
            body.connection = self._send(body, environ, body.answer or _timeout(environ, body))
        if body.error is not None and body.connection is not None:
            shut_for_reading(*body.connection)

    def _send(self, body: Body, environ: dict[str, Any], answer: Answer) -> tuple[int, int] | None:
        """Sends `answer`; returns the connection that it was written to, as `Body.connection`, or
        None if that can't be told or the body has come."""
        data = answer.data + b" " * random.choice(PADDING)
        before = {number: bytes_written(sock) for number, sock in own_sockets()}
        given = {name.lower() for name, _ in answer.headers}
        headers = [
            *answer.headers,
            ("Connection", "close"),
            *(header for header in HEADERS if header[0].lower() not in given),
        ]
        environ[PROTOCOL].response_bytes(answer.status, headers, data)
        whole = _on_the_wire(answer.status, headers, data)
        give_up, looks, last = time.monotonic() + WRITTEN, 0, list[int]()
        while self._waits(body) and (looks < LOOKS or time.monotonic() < give_up):
            found = [
                number
                for number, sock in own_sockets()
                if number in before and bytes_written(sock) - before[number] == whole
            ]
            # Another connection's answers may chance to be as long: so at two looks, and alone.
            if len(found) == 1 and found == last:
                return found[0], before[found[0]] + whole
            last, looks = found, looks + 1
            time.sleep(STEP)
        return None

    def _waits(self, body: Body) -> bool:
        """Return whether a thread waits for `body`, or drains it and may be between two reads."""
        return body.environ is not None and (body.answer is not None or body in self._reading)


def _timeout(environ: dict[str, Any], late: Body) -> Answer:
    request_id = environ["HTTP_X_REQUEST_ID"]
    sentence = late.error.description if isinstance(late.error, RequestTimeout) else ""
    body = error_body(environ["PATH_INFO"], "REQUEST_TIMEOUT", sentence or "", request_id)
    headers = (("Content-Type", "application/json"), ("X-Request-Id", request_id))
    return Answer(408, headers, msgspec.json.encode(body))


def _on_the_wire(status: int, headers: Sequence[tuple[str, str]], data: bytes) -> int:
    """The bytes that an answer takes in all, as the HTTP server writes it."""
    first = f"HTTP/1.1 {status} {PHRASES.get(status) or HTTPStatus(status).phrase}\r\n"
    lines = (*headers, *ADDED, ("Content-Length", str(len(data))))
    head = sum(len(f"{name}: {value}\r\n") for name, value in lines)
    return len(first) + head + len(b"\r\n") + len(data)
