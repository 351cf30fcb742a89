"""Request bodies on their way in: limits the time that a thread waits for one, the threads that
wait, and the memory of all bodies.

The HTTP server's read of a body ends when the body does, so a client that stops sending would keep
a thread for as long as it likes, and a few dozen of them every thread there is. The server has no
limit for it, and does not say which connection a request came on. But a request may be answered
from any thread, and the kernel counts the bytes written to each connection. So what came too late
is answered from here, by an answer of a length like no other's, and the connection on which that
was written is shut for reading, which ends the read.

A body's bytes are counted before they are read, by its Content-Length or, if there is none, as they
come, and until its request is answered. Whoever would bring more than there is room for
waits a moment; whoever has kept others waiting longest makes room.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import msgspec
from werkzeug.exceptions import RequestTimeout

from server.config.thread_budget import READING_REQUESTS_MAX
from server.errors import OverloadedError
from server.http.errors import Reply, error_body
from server.http.wsgi import SECURITY_HEADERS, Wsgi, context_of, without_body
from server.system.process import bytes_written, own_sockets, shut_for_reading

# From MANY threads that wait for bodies on, each further one takes the place of the one that has
# waited longest, if that has had GRACE_S seconds.
MANY, GRACE_S = READING_REQUESTS_MAX - 8, 1.0
# How long a body waits for room in memory, and the time between two looks for whom to give up.
ROOM_TIMEOUT_S, ROOM_STEP_S = 1.0, 0.1
# Bytes that are read at a time of a body without a length.
PIECE_BYTES = 1 << 16
# Methods whose requests' bodies no route reads.
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
# Bytes by which an answer to what came too late is made longer.
PADDING = range(2000, 8000)
# The headers that the HTTP server adds, a date has always as many letters, and the phrases of its
# first line that are not Python's.
PHRASES = {413: "Payload Too Large", 422: "Unprocessable Entity"}
ADDED = (("Server", "granian"), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"))
# Bytes that a TLS record adds: 5 of its header, a tag of 16, and 1 for the type (TLS 1.3, RFC 8446,
# 5.2) or 8 of a nonce (AES-GCM in TLS 1.2, RFC 5288, 3) or none (ChaCha20 there, RFC 7905, 2).
RECORD_ADDED = (5 + 16 + 1, 5 + 16 + 8, 5 + 16)
# Seconds that a piece of the body of a request that is already decided has to come before the
# client gets the answer, and that the rest has then before the connection is shut: a client that
# reads only once it has sent everything would else see a broken connection, not the answer.
DECIDED_TIMEOUT_S, LINGER_S = 0.3, 2.0
# How long the HTTP server may take to write an answer, and the time between two looks for it;
# LOOKS_MIN are made at least, in case this process stood still.
WRITE_TIMEOUT_S, LOOK_STEP_S, LOOKS_MIN = 2.0, 0.001, 50


class TimedBody:
    """`wsgi.input` of one request. `since` is when the read in hand began, in seconds of
    time.monotonic(); `error` what every read ends in from now on, if anything. `answer` is set if
    the request is decided and the rest of the body is only drained; `sent` is when it was sent
    before the body's end, else 0; `connection`, of the thread that watches, is where an answer was
    written to: a descriptor, and all bytes written to it. `held`: bytes that are counted as this
    request's; `waiting`: whether it waits for room for more."""

    __slots__ = (
        *(
            "_bodies",
            "_left",
            "_length",
            "_read",
            "answer",
            "answered",
            "connection",
            "environ",
            "error",
        ),
        *("held", "sent", "since", "waiting"),
    )

    def __init__(self, environ: dict[str, Any], bodies: "BodyTimeoutMiddleware") -> None:
        self._bodies, self._read = bodies, environ["wsgi.input"].read
        length = environ.get("CONTENT_LENGTH", "")
        self._left = self._length = int(length) if length.isdecimal() else None
        self.environ: dict[str, Any] | None = environ
        self.since = self.sent = 0.0
        self.answer: Reply | None = None
        self.answered = False
        self.connection: tuple[int, int] | None = None
        self.error: RequestTimeout | OverloadedError | None = None
        self.held, self.waiting = 0, False

    def decide(self, answer: Reply) -> None:
        """Have `answer` sent while the rest of the body is read, if that takes long; the reads end
        soon after."""
        self.answer = answer

    def due(self, seconds: float) -> float:
        """Return when to stop waiting for this body, of those that have `seconds` to come."""
        if self.answer is None:
            return self.since + seconds
        return self.sent + LINGER_S if self.sent else self.since + min(DECIDED_TIMEOUT_S, seconds)

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; fewer only at the body's end.

        Raises RequestTimeout if they do not come in time, OverloadedError if too many threads
        wait for bodies or too much of them is in memory.
        """
        if self._left is not None:
            size = min(size, self._left)
            if not size:
                return b""
        self._bodies.begin(self, size if self._left is not None else min(size, PIECE_BYTES))
        try:
            data = self._unknown(size) if self._left is None else self._known(size)
        finally:
            self._bodies.end(self)
        if self.error is not None:
            del data  # which the error's traceback would keep
            raise self.error
        return data

    def _known(self, size: int) -> bytes:
        # Asked for all there is, the HTTP server copies the body once and keeps no copy of its own;
        # after a part was read, it would answer as if the body had ended.
        data: bytes = self._read() if size == self._left == self._length else self._read(size)
        self._left = (self._left or 0) - len(data)
        return data

    def _unknown(self, size: int) -> bytes:
        pieces: list[bytes] = []
        came = 0
        while came < size and self.error is None:
            try:
                self._bodies.hold(self, min(size, came + PIECE_BYTES))
            except OverloadedError:
                pieces.clear()  # which the error's traceback would keep
                raise
            piece = self._read(min(PIECE_BYTES, size - came))
            if not piece:
                break
            pieces.append(piece)
            came += len(piece)
        return b"".join(pieces)

    def hold_more(self, size: int) -> None:
        """As `hold`."""
        self._bodies.hold(self, self.held + size)


def hold(environ: dict[str, Any], size: int) -> None:
    """Count `size` bytes more as held by a WSGI request until it is answered. Raises
    OverloadedError if there is no room for them."""
    body = context_of(environ).body
    if body is not None:
        body.hold_more(size)


class BodyTimeoutMiddleware:
    """WSGI middleware around `app` that ends each read of a body after `seconds`, and has at most
    `most_bytes` of all bodies in memory.

    `_lock` guards all that follows it: `_reading`, the bodies that threads wait for, the longest
    first; `_late`, those of them that are still to be answered; `_held`, the bytes counted, with
    `_room` to say that they became fewer; `_watching`, whether the thread that answers was started;
    `_next`, when it looks again.
    """

    def __init__(
        self,
        app: Wsgi,
        seconds: float,
        most_bytes: int,
        is_foreign: Callable[[str], bool] = lambda path: False,
        *,
        tls: bool = False,
    ) -> None:
        """is_foreign: as of `RouteTable`. tls: connections are encrypted by this server."""
        self._app, self._seconds, self._most_bytes = app, seconds, most_bytes
        self._is_foreign, self._tls = is_foreign, tls
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._held = 0
        self._reading: dict[TimedBody, None] = {}
        self._late: list[TimedBody] = []
        self._watching, self._next = False, 0.0

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        context = context_of(environ)
        empty = environ.get("CONTENT_LENGTH", "0") == "0" and not chunked
        if context.protocol is None or empty:
            return self._app(environ, start_response)
        if environ["REQUEST_METHOD"] in WITHOUT_BODY:
            return self._not_waited_for(environ, start_response)
        body = environ["wsgi.input"] = context.body = TimedBody(environ, self)
        try:
            return self._app(environ, start_response)
        finally:
            # Else the two would keep each other, and the body with them, until they are collected.
            body.environ = None
            self._release(body)

    def _not_waited_for(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request whose body means nothing (RFC 9110, 9.3) as if it had none, and have its
        connection closed, on which the body may still come."""
        return self._app(*without_body(environ, start_response))

    def begin(self, body: TimedBody, size: int) -> None:
        """Before a read of `size` bytes of `body`, for which it may wait. Raises its error if it
        has one."""
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
            try:
                self._await_room(body, size)
            except OverloadedError:
                del self._reading[body]
                raise

    def end(self, body: TimedBody) -> None:
        """After a read of `body`."""
        with self._lock:
            del self._reading[body]

    def hold(self, body: TimedBody, size: int) -> None:
        """Count `size` bytes in all as held by `body`, or as many as it holds if those are more.
        Raises OverloadedError if there is no room for them."""
        with self._lock:
            if not self._take(body, size):
                raise self._too_much(body)

    def _await_room(self, body: TimedBody, size: int) -> None:
        if self._take(body, size):
            return
        body.waiting, now = True, body.since
        try:
            while not self._take(body, size):
                if now - body.since >= ROOM_TIMEOUT_S:
                    raise self._too_much(body)
                self._free(self._held + size - body.held - self._most_bytes, now)
                self._room.wait(ROOM_STEP_S)
                now = time.monotonic()
        finally:
            body.waiting = False
        # It is waited for from now on, the last of all.
        del self._reading[body]
        body.since = now
        self._reading[body] = None

    def _take(self, body: TimedBody, size: int) -> bool:
        """Count `size` bytes as held by `body` if there is room; what is more than all that there
        may be, once there is nothing else."""
        more = min(size, self._most_bytes) - body.held
        if more <= 0:
            return True
        if self._held + more > self._most_bytes:
            return False
        self._held += more
        body.held += more
        return True

    def _too_much(self, body: TimedBody) -> OverloadedError:
        body.error = OverloadedError(
            f"the bodies of all requests take {self._held / 1e6:.0f} MB, and at most"
            f" {self._most_bytes / 1e6:g} MB may (bodies_mb)",
            retry_after=1,
        )
        return body.error

    def _free(self, size: int, now: float) -> None:
        """Give up bodies that were waited for long enough, the longest first, until those that
        were given up hold `size` bytes."""
        for other in self._reading:
            if size <= 0:
                break
            if other.waiting or now - other.since < GRACE_S:
                continue
            if other.error is None:
                self._give_up(other, now)
                self._wake.set()
            size -= other.held

    def _release(self, body: TimedBody) -> None:
        with self._lock:
            if body.held:
                self._held -= body.held
                body.held = 0
                self._room.notify_all()

    def _make_room(self, body: TimedBody) -> None:
        """Give up the body that is waited for longest; else raise OverloadedError."""
        longest = next(
            (other for other in self._reading if other.error is None and not other.waiting), None
        )
        if (
            longest is None
            or body.since - longest.since < GRACE_S
            or len(self._reading) >= READING_REQUESTS_MAX
        ):
            body.error = OverloadedError(
                f"{len(self._reading)} requests wait for their bodies, which is the most",
                retry_after=1,
            )
            raise body.error
        self._give_up(longest, body.since)
        self._wake.set()

    def _give_up(self, body: TimedBody, now: float) -> None:
        body.error = RequestTimeout(
            f"the request's body had not come in whole after {now - body.since:.1f} s"
        )
        self._late.append(body)

    def _watch(self) -> None:
        """Run the thread that answers what came too late."""
        left = 0.0
        while True:
            self._wake.wait(left)
            self._wake.clear()
            late, left = self._collect(time.monotonic())
            for body in late:
                # Without a descriptor to spare, this client keeps its thread, and others don't.
                with suppress(OSError):
                    self._answer(body)

    def _collect(self, now: float) -> tuple[list[TimedBody], float]:
        """Return the bodies that are late at `now`, and the seconds until another one may be."""
        with self._lock:
            self._next = now + self._seconds
            for body in self._reading:
                if body.error is not None or body.waiting:
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

    def _answer(self, body: TimedBody) -> None:
        """Answer in place of the thread that waits for `body`, and end its wait, unless the rest
        of the body is still to be drained."""
        environ = body.environ
        if environ is None:
            return  # it came just now
        if not body.answered:
            body.answered = True
            answer = body.answer or self._timeout(environ, body)
            body.connection = self._send(body, environ, answer)
        if body.error is not None and body.connection is not None:
            shut_for_reading(*body.connection)

    def _timeout(self, environ: dict[str, Any], late: TimedBody) -> Reply:
        request_id = context_of(environ).request_id
        sentence = late.error.description if isinstance(late.error, RequestTimeout) else ""
        foreign = self._is_foreign(environ["PATH_INFO"])
        body = error_body("REQUEST_TIMEOUT", sentence or "", request_id, foreign=foreign)
        headers = [("Content-Type", "application/json"), ("X-Request-Id", request_id)]
        return Reply(408, headers, msgspec.json.encode(body))

    def _send(
        self, body: TimedBody, environ: dict[str, Any], answer: Reply
    ) -> tuple[int, int] | None:
        """Send `answer`. Return the connection that it was written to, as
        `TimedBody.connection`, or None if that is not known or the body has come."""
        data = answer.data + b" " * random.choice(PADDING)
        before = {number: bytes_written(sock) for number, sock in own_sockets()}
        given = {name.lower() for name, _ in answer.headers}
        headers = [
            *answer.headers,
            ("Connection", "close"),
            *(header for header in SECURITY_HEADERS if header[0].lower() not in given),
        ]
        context_of(environ).protocol.response_bytes(answer.status, headers, data)
        whole = _on_the_wire(answer.status, headers, data)
        lengths = _lengths(whole, tls=self._tls)
        give_up, looks, last = time.monotonic() + WRITE_TIMEOUT_S, 0, list[tuple[int, int]]()
        while self._waits(body) and (looks < LOOKS_MIN or time.monotonic() < give_up):
            connections = [
                (number, written)
                for number, sock in own_sockets()
                if number in before and (written := bytes_written(sock)) - before[number] in lengths
            ]
            # Another connection's answers may chance to be as long: so at two looks, and alone.
            if len(connections) == 1 and connections == last:
                return connections[0]
            last, looks = connections, looks + 1
            time.sleep(LOOK_STEP_S)
        return None

    def _waits(self, body: TimedBody) -> bool:
        """Return whether a thread waits for `body`, or drains it and may be between two reads."""
        return body.environ is not None and (body.answer is not None or body in self._reading)


def _on_the_wire(status: int, headers: Sequence[tuple[str, str]], data: bytes) -> int:
    """Return the bytes that an answer takes in all, as the HTTP server writes it."""
    first = f"HTTP/1.1 {status} {PHRASES.get(status) or HTTPStatus(status).phrase}\r\n"
    lines = (*headers, *ADDED, ("Content-Length", str(len(data))))
    head = sum(len(f"{name}: {value}\r\n") for name, value in lines)
    return len(first) + head + len(b"\r\n") + len(data)


def _lengths(whole: int, *, tls: bool) -> frozenset[int]:
    """Return the bytes that an answer of `whole` bytes, which is less than one TLS record holds,
    may take on the connection: by TLS, in one record or in two, for its head and its data."""
    if not tls:
        return frozenset({whole})
    return frozenset(whole + records * added for records in (1, 2) for added in RECORD_ADDED)
