"""A request's body as bytes: read in one piece and decompressed, or drained if nobody read it."""

import time
import zlib
from collections.abc import Mapping
from typing import Any

from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, RequestTimeout
from werkzeug.sansio.utils import get_content_length

from server.errors import (
    BodyTooLargeError,
    ContentCodingError,
    InvalidFieldError,
    OverloadedError,
)
from server.http.body.timeout import TimedBody, hold
from server.http.errors import Reply
from server.http.wsgi import context_of

# Some cameras and Triton's client send compressed bodies (RFC 9110, 8.4). zlib's windowBits for
# each content coding: 16 more for gzip's header, plain for zlib's.
CODINGS = {
    "gzip": 16 + zlib.MAX_WBITS,
    "x-gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}
# Letters of a coding's name that an error message repeats.
CODING_SHOWN = 40
# Bytes that are inflated at a time, before they are counted.
PIECE = 1 << 20
# A client still sending when its connection closes sees a broken pipe instead of its answer.
DRAINED_BYTES_MAX = 64 << 20
# Each of many pieces may come in time, and all together still take hours.
DRAIN_TIMEOUT_S = 10.0
CHUNK = 1 << 18


def coding_of(environ: Mapping[str, Any]) -> str:
    """Return the content coding of a WSGI request's body; '' without. Raises ContentCodingError for
    one that is not taken."""
    coding: str = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding in ("", "identity"):
        return ""
    if coding not in CODINGS:
        raise ContentCodingError(
            f"the Content-Encoding {coding[:CODING_SHOWN]} is not taken: send gzip, deflate, or the"
            " body as it is"
        )
    return coding


def inflate(data: bytes, coding: str, most: int | None, environ: dict[str, Any]) -> bytes:
    """Return `data`, compressed by `coding`, decompressed to at most `most` bytes. The request
    holds them from then on.

    Raises InvalidFieldError for damaged data, BodyTooLargeError, and OverloadedError as
    `server.http.body.timeout` says.
    """
    most = len(data) if most is None else most
    decompressor = zlib.decompressobj(CODINGS[coding])
    pieces, size = [], 0
    try:
        # Never one byte more than may be is held.
        while data and not decompressor.eof:
            piece = decompressor.decompress(data, min(PIECE, most - size + 1))
            data, size = decompressor.unconsumed_tail, size + len(piece)
            if size > most:
                raise BodyTooLargeError(f"the request's body has more than {most / 1e6:g} MB")
            hold(environ, len(piece))
            pieces.append(piece)
            if not piece and not data:
                break
    except zlib.error:
        raise InvalidFieldError(f"the body is not valid {coding}: it is damaged") from None
    if not decompressor.eof:
        raise InvalidFieldError(f"the body is not valid {coding}: it is cut off")
    if decompressor.unused_data:
        raise InvalidFieldError(f"the body is not valid {coding}: other bytes follow its end")
    return b"".join(pieces)


def whole_body(environ: dict[str, Any], most: int | None) -> bytes:
    """Read the body of a WSGI request, decompressed, of at most `most` bytes.

    Raises RequestEntityTooLarge, BadRequest if it ends too early, RequestTimeout and
    OverloadedError as `server.http.body.timeout` says, and what `inflate` raises.
    """
    coding = coding_of(environ)
    body = _as_sent(environ, most)
    return inflate(body, coding, most, environ) if coding else body


def _as_sent(environ: dict[str, Any], most: int | None) -> bytes:
    length = get_content_length(
        environ.get("CONTENT_LENGTH"), environ.get("HTTP_TRANSFER_ENCODING")
    )
    if length is None:
        # A chunked body has no length before its end, so one byte more than may be is read.
        body: bytes = environ["wsgi.input"].read(-1 if most is None else most + 1)
        length = len(body)
    elif most is not None and length > most:
        raise RequestEntityTooLarge
    else:
        body = environ["wsgi.input"].read(length)
    if most is not None and len(body) > most:
        raise RequestEntityTooLarge
    if len(body) != length:
        raise BadRequest(f"the request's body ended after {len(body)} of {length} bytes")
    context_of(environ).body_read = True
    return body


def drain_body(environ: dict[str, Any], reply: Reply | None) -> bool:
    """Read and forget a body that no one read, so that the client gets to read `reply` and may go
    on using its connection. If the body takes long to come, `reply` is sent meanwhile, if given.

    At most 64 MiB are read, for 10 s; returns False if there was more, and for a body that does not
    come: the connection has to close.
    """
    body = environ.get("wsgi.input")
    chunked = "HTTP_TRANSFER_ENCODING" in environ
    length = get_content_length(environ.get("CONTENT_LENGTH"), None)
    if context_of(environ).body_read or body is None or not (length or chunked):
        return True
    if isinstance(body, TimedBody) and reply is not None:
        body.decide(reply)
    left = min(length or DRAINED_BYTES_MAX, DRAINED_BYTES_MAX)
    end = time.monotonic() + DRAIN_TIMEOUT_S
    try:
        while time.monotonic() < end:
            chunk = body.read(min(left, CHUNK))
            left -= len(chunk)
            if not chunk or not left:
                return True
    except (RequestTimeout, OverloadedError):
        pass
    return False
