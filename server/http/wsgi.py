"""A request before Flask sees it: its state, `RequestContext`, and the middleware at the entrance.

A WSGI application may be called by several layers, and each of them has only the environment to
leave something for the next. Ours leave it in one object there.
"""

import io
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

import msgspec
from flask import request

from server.errors import InvalidFieldError, LinesideError, OverloadedError
from server.http.access.caller import Caller
from server.http.access.proxies import TrustedProxies
from server.recognition.answers import Options
from server.recognition.manifest import Manifest
from server.values.trace import Trace, read_trace

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# In a WSGI environment, the request's RequestContext.
CONTEXT = "lineside.context"
# Among a Flask application's extensions: the features that are switched on, for the log.
FEATURES = "lineside.features"
# There too: the server of gRPC, which does not listen yet; None if it is switched off.
GRPC = "lineside.grpc"
# Excludes what looks like a key or token, since ids are sent back and logged.
REQUEST_ID = re.compile(r"(?!ls_|eyJ)[A-Za-z0-9._:-]{1,64}")
SLASHES = re.compile("//+")
# What a proxy may name as its prefix: plain segments, so that it can't lead to another host.
PREFIX = re.compile("(/[A-Za-z0-9._~-]{1,64}){0,8}")
# Bytes of a query string, a path or a header; what is asked of a frame takes 1,000.
VALUE_BYTES_MAX = 16_384
# Headers of every answer. Pages come with everything they need from this server, and no other page
# may frame them.
SECURITY_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none';"
        " form-action 'self'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class CountedBody(Protocol):
    """A body whose bytes in memory are counted."""

    def hold_more(self, size: int) -> None:
        """Count `size` bytes more; raise OverloadedError if there is no room for them."""


class RequestContext(msgspec.Struct):
    """The state of one request, from its first line to its log line.

    request_id: the caller's X-Request-Id if it is a plain name, else a new one. started: the
    arrival, in seconds of time.perf_counter(). trace: of a valid traceparent. protocol: Granian's
    object that sends the answer; None under another server. stopping: is set once the server is
    told to stop. sent_path: the path as it was sent, if it was changed. refused: why nobody is to
    look at the request; unusable: why what it was made of can't be used, which only its caller is
    told. body: counts the bytes of the body; body_read: it was read to its end.
    keys_asked: a key or token was asked for; caller: its owner; caller_fault: what is wrong with
    it; caller_stale: nothing but the age of its nonce. is_frame: an error counts as a refused
    frame. camera, manifest, options: of the frame, as far as they are known. log_fields: of the log
    line of a good answer. error_code, error_message, error_cause: of an error's answer; failure:
    the exception behind it, if it was not foreseen.
    """

    request_id: str
    started: float
    trace: Trace | None = None
    protocol: Any = None
    stopping: threading.Event | None = None
    sent_path: str = ""
    refused: LinesideError | None = None
    unusable: LinesideError | None = None
    body: CountedBody | None = None
    body_read: bool = False
    keys_asked: bool = False
    caller: Caller | None = None
    caller_fault: str = ""
    caller_stale: bool = False
    is_frame: bool = False
    camera: str | None = None
    manifest: Manifest | None = None
    options: Options | None = None
    log_fields: dict[str, object] = {}
    error_code: str = ""
    error_message: str = ""
    error_cause: str = ""
    failure: Exception | None = None

    @property
    def leaving(self) -> bool:
        """Return True if the server was told to stop."""
        return self.stopping is not None and self.stopping.is_set()

    @property
    def caller_name(self) -> str:
        """The name of the caller's key or token; empty without."""
        return self.caller.name if self.caller else ""


def context_of(environ: dict[str, Any]) -> RequestContext:
    """Return the context of the request with this WSGI environment, made when first asked for."""
    context: RequestContext | None = environ.get(CONTEXT)
    if context is None:
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if given and REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        context = environ[CONTEXT] = RequestContext(request_id, time.perf_counter())
        if sent := environ.get("HTTP_TRACEPARENT"):
            context.trace = read_trace(sent, environ.get("HTTP_TRACESTATE", ""))
    return context


def current() -> RequestContext:
    """Return the context of the request that Flask works on."""
    return context_of(request.environ)


def normal(path: str) -> str:
    """Return `path` with single slashes, and none at its end."""
    if "//" in path:
        path = SLASHES.sub("/", path)
    return path.rstrip("/") or "/" if path.endswith("/") else path


class Entrance:
    """WSGI middleware around `app` that comes before all that looks at a path.

    A doubled slash counts as one, and one at the end as none, on every route: cameras and their
    proxies join addresses carelessly, and do not follow a redirect of a POST. The path's prefix is
    `prefix` or, without, the one that the proxy names. A query string, path or header that is
    longer than any needs to be is refused before anyone splits it. Answers get `SECURITY_HEADERS`.
    `proxies` are those whose headers count; without, only the prefix does, since it changes nothing
    but its sender's own answer.
    """

    def __init__(self, app: Wsgi, prefix: str, proxies: TrustedProxies | None = None) -> None:
        self._app = app
        self._prefix = prefix
        self._proxies = proxies

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        context, path = context_of(environ), environ["PATH_INFO"]
        if self._proxies:
            self._proxies.apply(environ)
        if "//" in path or path.endswith("/"):
            context.sent_path, environ["PATH_INFO"] = path, normal(path)
        if self._prefix:
            environ["SCRIPT_NAME"] = self._prefix
        elif "HTTP_X_FORWARDED_PREFIX" in environ:
            prefix = environ["HTTP_X_FORWARDED_PREFIX"].strip().rstrip("/")
            if PREFIX.fullmatch(prefix):
                environ["SCRIPT_NAME"] = prefix
        # A part of a file is never asked for, and one that is not there would be a status more.
        environ.pop("HTTP_RANGE", None)
        for name, value in list(environ.items()):
            if value.__class__ is str and len(value) > VALUE_BYTES_MAX:
                context.refused = _too_long(name, len(value))
                environ[name] = ""

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            present = {name for name, _ in headers}
            added = [header for header in SECURITY_HEADERS if header[0] not in present]
            return start_response(status, headers + added, *error)

        return self._app(environ, start)


def _too_long(name: str, size: int) -> InvalidFieldError:
    """Return the error of a value of a WSGI environment that is longer than any needs to be."""
    known = {"QUERY_STRING": "the query string", "PATH_INFO": "the path"}
    header = name.removeprefix("HTTP_").replace("_", "-").title()
    what = known.get(name) or f"the header {header}"
    return InvalidFieldError(
        f"{what} has {size:,} bytes, and at most {VALUE_BYTES_MAX:,} are taken"
    )


class Reserve:
    """WSGI middleware around `app` that keeps threads for probes: it has at most `most` requests
    there at the same time, those of `probes` not counted, the paths that machines ask to learn how
    this one does. Each further one goes to `refusing`, with its error in its context and without
    its body, and its connection is closed. `server.config.thread_budget` says how many there are.

    `_lock` guards `_inside`, the requests there.
    """

    def __init__(self, app: Wsgi, refusing: Wsgi, most: int, probes: Collection[str]) -> None:
        self._app = app
        self._refusing = refusing
        self._most = most
        self._probes = probes
        self._lock = threading.Lock()
        self._inside = 0

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if environ["PATH_INFO"] in self._probes and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._app(environ, start_response)
        with self._lock:
            free = self._inside < self._most
            self._inside += free
        if not free:
            context_of(environ).refused = OverloadedError(
                f"{self._most} requests are being answered, which is the most", retry_after=1
            )
            return self._refusing(*without_body(environ, start_response))
        answer = None
        try:
            answer = self._app(environ, start_response)
        finally:
            if answer is None or isinstance(answer, list):
                self._leave()
        return answer if isinstance(answer, list) else _StreamedAnswer(answer, self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1


class _StreamedAnswer:
    """The pieces of an answer, with `on_end` called once when it has ended, however it does."""

    def __init__(self, pieces: Iterable[bytes], on_end: Callable[[], None]) -> None:
        self._pieces = pieces
        self._on_end = on_end
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def __del__(self) -> None:
        # Whoever forgets the answer without closing it gives its place back all the same.
        self.close()

    def close(self) -> None:
        """End the answer, as a WSGI server does (PEP 3333)."""
        if not self._open:
            return
        self._open = False
        try:
            if close := getattr(self._pieces, "close", None):
                close()
        finally:
            self._on_end()


def without_body(
    environ: dict[str, Any], start_response: Callable[..., Any]
) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Return a request as if it had no body. Its connection is closed after its answer, since the
    body may still come on it."""
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ["wsgi.input"] = io.BytesIO()
    environ["CONTENT_LENGTH"] = "0"

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        return start_response(status, [*headers, ("Connection", "close")], *error)

    return environ, start
