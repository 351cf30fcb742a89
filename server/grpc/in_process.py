"""A call over gRPC as a request to the server's own WSGI application, without a network between.

Both forms of the protocol say the same. So a call is answered by the route that answers it over
HTTP, behind the same access, rates, limits, log and metrics.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlencode

import msgspec

from server.errors import LinesideError
from server.http.wsgi import Wsgi, context_of

# Metadata that count, which are headers over HTTP.
HEADERS = frozenset(
    {
        *("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate"),
        *("x-forwarded-for", "x-forwarded-proto"),
    }
)


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A call as an HTTP request. query: by name. json: the part of the body before its binary
    data; empty: there is no body. data: the binary data, of each tensor. refused: why it can't be
    asked; the route, which knows whose it is and how to log and count that, raises it."""

    method: str
    path: str
    query: Mapping[str, str] = {}
    json: bytes = b""
    data: Sequence[bytes | memoryview] = ()
    refused: LinesideError | None = None


class Answer(NamedTuple):
    """The answer. json, data: of its body, as of a request's. code, message: of an error."""

    status: int
    headers: dict[str, str]
    json: bytes
    data: bytes
    code: str = ""
    message: str = ""


class Sender(NamedTuple):
    """Who calls. peer: as gRPC writes it. metadata: of the call."""

    peer: str
    metadata: Sequence[tuple[str, str | bytes]]


class _NoConnection:
    """Stands in for the HTTP server's object that sends an answer before its time, when a body
    comes late: here it is whole."""

    def response_bytes(self, status: int, headers: Sequence[Any], data: bytes) -> None:
        """Send nothing."""


def ask(app: Wsgi, request: Request, sender: Sender, *, tls: bool) -> Answer:
    """Return the answer of `app` to `request`. Raises nothing, if `app` does not."""
    environ = _environ(request, sender, tls=tls)
    context = context_of(environ)
    context.protocol = _NoConnection()
    context.unusable = request.refused
    status, headers = 0, dict[str, str]()

    def start_response(line: str, fields: list[tuple[str, str]], _: Any = None) -> None:
        nonlocal status, headers
        status = int(line.split(" ", 1)[0])
        headers = {name.lower(): value for name, value in fields}

    pieces = app(environ, start_response)
    try:
        body = b"".join(pieces)
    finally:
        if close := getattr(pieces, "close", None):
            close()
        # Else error and request would keep each other until garbage is looked for, and gRPC takes
        # a call that is not freed for one that goes on.
        context.unusable = None
    split = int(headers.get("inference-header-content-length", len(body)))
    if status < 400:
        return Answer(status, headers, body[:split], body[split:])
    return Answer(status, headers, body, b"", context.error_code, context.error_message)


def _environ(request: Request, sender: Sender, *, tls: bool) -> dict[str, Any]:
    """Return the WSGI environment (PEP 3333) of a request."""
    body = b"".join([request.json, *request.data])
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": request.path.encode().decode("latin1"),
        "QUERY_STRING": urlencode(request.query),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "0",
        "SERVER_PROTOCOL": "HTTP/2",
        "REMOTE_ADDR": address_of(sender.peer),
        # A page of another site can't call: gRPC needs what browsers ask permission for, and the
        # server gives none. So the name by which it was called is not needed to tell one.
        "HTTP_HOST": "localhost",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if tls else "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if request.method == "POST":
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["CONTENT_TYPE"] = "application/json"
    if request.data:
        environ["CONTENT_TYPE"] = "application/octet-stream"
        environ["HTTP_INFERENCE_HEADER_CONTENT_LENGTH"] = str(len(request.json))
    for name, value in sender.metadata:
        if name in HEADERS and isinstance(value, str):
            key = f"HTTP_{name.upper().replace('-', '_')}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ


def address_of(peer: str) -> str:
    """Return the IP address in a peer as gRPC writes it: ipv4:10.0.0.5:4711, ipv6:[::1]:4711.
    Empty for another kind, which is on this machine."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    address = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    return address.removeprefix("::ffff:") if "." in address else address
