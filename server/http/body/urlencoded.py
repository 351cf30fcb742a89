"""Forms as application/x-www-form-urlencoded, in memory that grows no faster than the body.

The standard library makes an object of each escape and each field before anyone can count them.
"""

import binascii
import re
from urllib.parse import unquote_plus

from werkzeug.exceptions import RequestEntityTooLarge

from server.errors import InvalidFieldError

# Bytes of a field's text, but for an image's, which may be as long as the body.
LONGEST_TEXT = 65_536
# Fields that hold an image as text.
IMAGE_TEXTS = frozenset({"image_base64"})
NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Letters of a field's name that an error message repeats.
SHOWN = 64


def check_text(name: str, size: int) -> None:
    """Raises InvalidFieldError where a form's field `name` has more bytes of text than any field
    can need."""
    if size > LONGEST_TEXT and name not in IMAGE_TEXTS:
        raise InvalidFieldError(
            f"the field {name[:SHOWN]} has {size:,} bytes of text, and at most {LONGEST_TEXT:,} are"
            " taken: send an image as a file, or as base64 in image_base64"
        )


def parse_urlencoded(body: bytes, codec: str, max_fields: int) -> list[tuple[str, str]]:
    """The fields of a form in the order in which they were sent (WHATWG URL, 5.1), its text in
    `codec`.

    Raises RequestEntityTooLarge beyond `max_fields`, InvalidFieldError naming a field that is too
    long or malformed.
    """
    if body.count(b"&") >= max_fields:
        raise RequestEntityTooLarge
    fields = []
    for pair in body.split(b"&"):
        raw_name, _, raw = pair.partition(b"=")
        if not pair:
            continue
        if len(raw_name) > LONGEST_TEXT:
            check_text("", len(raw_name))
        name = _unquote(raw_name, codec)
        check_text(name, len(raw))
        long = len(raw) > LONGEST_TEXT
        fields.append((name, _unquote_long(name, raw) if long else _unquote(raw, codec)))
    return fields


def _unquote(raw: bytes, codec: str) -> str:
    return unquote_plus(raw.decode(codec, "replace"), codec, "replace")


def _unquote_long(name: str, raw: bytes) -> str:
    """As `_unquote`, for ASCII text: quoted-printable (RFC 2045, 6.7) writes the same escapes with
    another sign, and is read in one piece."""
    if NO_ESCAPE.search(raw):
        raise InvalidFieldError(f"the field {name} has a % that is not followed by two digits")
    raw = raw.replace(b"=", b"%3D").replace(b"+", b" ").replace(b"%", b"=")
    return binascii.a2b_qp(raw).decode("ascii", "replace")
