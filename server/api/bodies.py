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
# Its first line, and the headers that the HTTP server adds: a date has always as many letters.
STATUS = b"HTTP/1.1 408 Request Timeout\r\n"
ADDED = (("Server", "granian"), ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"))
# Seconds in which the HTTP server has written an answer that it was given, busy as it may be, and
# between two looks whether it has; LOOKS are made at least, where this process stood still.
WRITTEN, STEP, LOOKS = 2.0, 0.001, 50


class Body:
    """`wsgi.input` of one request. `since` is when the read in hand began, in seconds of
    time.monotonic(); `error` what every read ends in from now on, if anything."""

    __slots__ = ("_bodies", "_read", "_whole", "environ", "error", "since")

    def __init__(self, environ: dict[str, Any], bodies: "Bodies") -> None:
        self._bodies, self._read = bodies, environ["wsgi.input"].read
        self._whole = environ.get("CONTENT_LENGTH")
        self.environ: dict[str, Any] | None = environ
        self.since = 0.0
        self.error: RequestTimeout | OverloadedError | None = None

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


Late = tuple[Body, RequestTimeout]


class Bodies:
    """WSGI middleware around `app` that ends each read of a body after `seconds`.

    `_lock` guards all that follows it: `_reading`, the bodies that threads wait for, the longest
    first; `_late`, those of them that are still to be answered; `_watching`, whether the thread
    that does so was started.
    """

    def __init__(self, app: Wsgi, seconds: float) -> None:
        self._app, self._seconds = app, seconds
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._reading: dict[Body, None] = {}
        self._late: list[Late] = []
        self._watching = False

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
            if not self._watching:
                self._watching = True
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
        error = body.error = RequestTimeout(
            f"the request's body had not come in whole after {now - body.since:.1f} s"
        )
        self._late.append((body, error))

    def _watch(self) -> None:
        """Life of the thread that answers what came too late."""
        left = self._seconds
        while True:
            self._wake.wait(left)
            self._wake.clear()
            late, left = self._collect(time.monotonic())
            for body, error in late:
                # Without a descriptor to spare, this client keeps its thread, and others don't.
                with suppress(OSError):
                    self._answer(body, error)

    def _collect(self, now: float) -> tuple[list[Late], float]:
        """The bodies that are late at `now`, and the seconds until another one may be."""
        with self._lock:
            left = self._seconds
            for body in self._reading:
                if body.error is None:
                    left = body.since + self._seconds - now
                    if left > 0:
                        break
                    self._give_up(body, now)
                    left = self._seconds
            late, self._late = self._late, []
        return late, left

    def _answer(self, body: Body, error: RequestTimeout) -> None:
        """Answers in place of the thread that waits for `body`, and ends its wait."""
        environ = body.environ
        if environ is None:
            return  # it came just now
        request_id = environ["HTTP_X_REQUEST_ID"]
        answer = error_body(
            environ["PATH_INFO"], "REQUEST_TIMEOUT", error.description or "", request_id
        )
        data = msgspec.json.encode(answer) + b" " * random.choice(PADDING)
        before = {number: bytes_written(sock) for number, sock in own_sockets()}
        headers = [
            ("Content-Type", "application/json"),
            ("X-Request-Id", request_id),
            ("Connection", "close"),
            *HEADERS,
        ]
        environ[PROTOCOL].response_bytes(408, headers, data)
        whole = _on_the_wire(headers, data)
        give_up, looks, last = time.monotonic() + WRITTEN, 0, list[int]()
        while body in self._reading and (looks < LOOKS or time.monotonic() < give_up):
            found = [
                number
                for number, sock in own_sockets()
                if number in before and bytes_written(sock) - before[number] == whole
            ]
            # Another connection's answers may chance to be as long: so at two looks, and alone.
            if len(found) == 1 and found == last:
                shut_for_reading(found[0], before.pop(found[0]) + whole)
            last, looks = found, looks + 1
            time.sleep(STEP)


def _on_the_wire(headers: Sequence[tuple[str, str]], data: bytes) -> int:
    """The bytes that an answer 408 takes in all, as the HTTP server writes it."""
    lines = (*headers, *ADDED, ("Content-Length", str(len(data))))
    head = sum(len(f"{name}: {value}\r\n") for name, value in lines)
    return len(STATUS) + head + len(b"\r\n") + len(data)
