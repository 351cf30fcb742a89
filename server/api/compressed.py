"""Request bodies that are sent compressed, as Triton's client can (RFC 9110, 8.4)."""

import zlib

from flask import request

from server.errors import BodyTooLargeError, ContentCodingError, InvalidFieldError

# zlib's windowBits for each content coding: 16 more for gzip's header, plain for zlib's.
CODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


def read_body() -> bytes:
    """This request's body, decompressed, of at most the size that any body may have.

    Raises ContentCodingError for another coding, InvalidFieldError for damaged data,
    BodyTooLargeError.
    """
    data = request.get_data(cache=False)
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if coding == "identity":
        return data
    if coding not in CODINGS:
        raise ContentCodingError(f"the Content-Encoding {coding} should be gzip or deflate")
    most = request.max_content_length or len(data)
    inflate = zlib.decompressobj(CODINGS[coding])
    try:
        # One byte more than may be, so that what is too large is never held whole.
        found = inflate.decompress(data, most + 1)
    except zlib.error as error:
        raise InvalidFieldError(f"the body is not valid {coding}: {error}") from None
    if len(found) > most:
        raise BodyTooLargeError(f"the request's body has more than {most / 1e6:g} MB")
    if not inflate.eof:
        raise InvalidFieldError(f"the body is not valid {coding}: it is cut off")
    return found
