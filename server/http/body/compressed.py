"""Request bodies that are sent compressed, as some cameras and Triton's client can (RFC 9110,
8.4)."""

import zlib
from collections.abc import Mapping
from typing import Any

from flask import request
from werkzeug.http import parse_options_header

from server.errors import BodyTooLargeError, ContentCodingError, InvalidFieldError
from server.http.body.charsets import as_utf8, codec_of
from server.http.body.timeout import hold

FORM = "multipart/form-data"
JSON = "application/json"
# zlib's windowBits for each content coding: 16 more for gzip's header, plain for zlib's.
CODINGS = {
    "gzip": 16 + zlib.MAX_WBITS,
    "x-gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
}
# Letters of a coding's name that an error message repeats.
SHOWN = 40
# Bytes of a number as an object.
VALUE = 32
# Bytes that are inflated at a time, before they are counted.
PIECE = 1 << 20


def coding_of(environ: Mapping[str, Any]) -> str:
    """The content coding of a WSGI request's body; '' without. Raises ContentCodingError for one
    that is not taken."""
    coding: str = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding in ("", "identity"):
        return ""
    if coding not in CODINGS:
        raise ContentCodingError(
            f"the Content-Encoding {coding[:SHOWN]} is not taken: send gzip, deflate, or the body"
            " as it is"
        )
    return coding


def inflate(data: bytes, coding: str, most: int | None, environ: dict[str, Any]) -> bytes:
    """`data`, compressed by `coding`, decompressed to at most `most` bytes, which the request holds
    from then on.

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


def read_body() -> bytes:
    """This request's body, decompressed, of at most the size that any body may have; JSON in UTF-8.

    What its values will take in memory is counted as held.

    Raises InvalidFieldError for a form and for a charset that is not taken, OverloadedError, and
    what `whole_body` raises.
    """
    if request.mimetype == FORM:
        raise InvalidFieldError(
            f"the body is a form, and {request.path} takes JSON: send an object with"
            f" Content-Type: {JSON}"
        )
    data = request.get_data(cache=False)
    # Each value of a list becomes an object of Python's.
    hold(request.environ, VALUE * data.count(b","))
    kind, options = parse_options_header(request.content_type)
    if kind.lower() == JSON and (charset := options.get("charset")):
        return as_utf8(data, codec_of(charset, "the body"))
    return data
