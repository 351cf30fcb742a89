"""JSON bodies, and images as text in them."""

import binascii
import re
from typing import TypeVar

from flask import request
from werkzeug.http import parse_options_header

from server.errors import InvalidFieldError, MissingFieldError
from server.http.body.form_text import as_utf8, codec_of
from server.http.body.timeout import hold
from server.http.routes import JSON, MULTIPART
from server.values import json_values
from server.values.validation import InvalidValueError

T = TypeVar("T")

# Bytes of a number as an object.
VALUE = 32
NO_BASE64 = re.compile("[^A-Za-z0-9+/=]")

# Lists and objects in a body, of which an object counts as two; 20 images of 224x224 pixels have as
# many lists. They take up to 50 times their text's memory, and all of the time that it takes to
# make them no other frame is answered. Texts take up to 18 times, and numbers 10 times.
MOST_NESTED, MOST_TEXTS, MOST_VALUES = 1_000_000, 1_000_000, 10_000_000


def decode_json(kind: type[T], data: bytes, *, name: str = "", not_finite: bool = False) -> T:
    """Return `data` as a value of `kind`, within the bounds of any body; else as
    `json_values.decode`.

    Raises InvalidFieldError that names what is wrong, MissingFieldError for no data.
    """
    if not data:
        raise MissingFieldError("the request has no body: send a JSON object")
    _check_size(data)
    try:
        return json_values.decode(data, kind, name=name, not_finite=not_finite)
    except InvalidValueError as error:
        raise InvalidFieldError(str(error)) from None


def _check_size(data: bytes) -> None:
    """Raise InvalidFieldError if the values of `data` would take too much memory, which is
    known before any is made."""
    if len(data) <= MOST_NESTED:
        return
    if data.count(b"[") + 2 * data.count(b"{") > MOST_NESTED:
        raise InvalidFieldError(
            f"the JSON has more than {MOST_NESTED:,} lists and objects, of which an object counts"
            " as two"
        )
    if data.count(b'"') > 2 * MOST_TEXTS:
        raise InvalidFieldError(f"the JSON has more than {MOST_TEXTS:,} texts and names")
    if data.count(b",") > MOST_VALUES:
        raise InvalidFieldError(f"the JSON has more than {MOST_VALUES:,} values")


def read_json(kind: type[T]) -> T:
    """Read this request's body as `kind`. Errors are those of `decode_json` and `read_body`."""
    return decode_json(kind, read_body())


def decode_base64(text: str, field: str) -> bytes:
    """Return the bytes that `text` stands for: base64 (RFC 4648, 4), with line ends (RFC 2045, 6.8)
    or as a data: URL (RFC 2397). Raises InvalidFieldError naming `field`."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InvalidFieldError(f"{field} is a data: URL but not of base64")
    if "\n" in text or "\r" in text:
        text = text.replace("\r", "").replace("\n", "")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise InvalidFieldError(f"{field} is not valid base64: {_base64_fault(text)}") from None


def _base64_fault(text: str) -> str:
    """Return why `text` is no base64."""
    if wrong := NO_BASE64.search(text):
        if wrong[0] in "-_":
            return (
                f"{wrong[0]} stands for a letter of the URL-safe kind; send + and / in their place"
            )
        return f"the character {wrong[0]!r} at {wrong.start()} is not of its alphabet"
    if "=" in text.rstrip("="):
        return "a = stands before its end"
    return "its length is not a multiple of 4, or its padding is wrong: it may be cut off"


def read_body() -> bytes:
    """Return this request's body, decompressed, of at most the size that any body may have; JSON in
    UTF-8. Count the memory that its values will take as held.

    Raises InvalidFieldError for a form and for a charset that is not taken, OverloadedError, and
    what `whole_body` raises.
    """
    if request.mimetype == MULTIPART:
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
