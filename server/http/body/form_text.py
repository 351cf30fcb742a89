"""The text of forms: its charset, and application/x-www-form-urlencoded, in memory that grows no
faster than the body.

The standard library makes an object of each escape and each field before anyone can count them.
"""

import binascii
import codecs
import re
from urllib.parse import unquote_plus

from werkzeug.exceptions import RequestEntityTooLarge

from server.errors import InvalidFieldError

# The charsets in which text is taken: UTF-8, of which US-ASCII is a part, and Latin-1. Python knows
# a hundred more, by name. Some of them need a time that grows by the square of the text's length,
# and no client of this field sends one.
CODECS = {
    **dict.fromkeys(("", "utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin-1", "latin1"), "latin-1"),
}
# Letters of a charset's name that an error message repeats.
CHARSET_SHOWN = 40
# Bytes of a field's text, but for an image's, which may be as long as the body.
TEXT_BYTES_MAX = 65_536
# Fields that hold an image as text.
IMAGE_TEXTS = frozenset({"image_base64"})
NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# Letters of a field's name that an error message repeats.
SHOWN = 64


def check_text(name: str, size: int) -> None:
    """Raise InvalidFieldError if a form's field `name` has more bytes of text than any field can
    need."""
    if size > TEXT_BYTES_MAX and name not in IMAGE_TEXTS:
        raise InvalidFieldError(
            f"the field {name[:SHOWN]} has {size:,} bytes of text, and at most {TEXT_BYTES_MAX:,}"
            " are taken: send an image as a file, or as base64 in image_base64"
        )


def parse_urlencoded(body: bytes, codec: str, max_fields: int) -> list[tuple[str, str]]:
    """Return the fields of a form in the order in which they were sent (WHATWG URL, 5.1), its text
    in `codec`.

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
        if len(raw_name) > TEXT_BYTES_MAX:
            check_text("", len(raw_name))
        name = _unquote(raw_name, codec)
        check_text(name, len(raw))
        long = len(raw) > TEXT_BYTES_MAX
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


def codec_of(charset: str, what: str) -> str:
    """Return the codec, `utf-8` or `latin-1`, of `what` that says to be in `charset`; UTF-8 if it
    says nothing. Raises InvalidFieldError for any other charset."""
    codec = CODECS.get(charset.strip().lower())
    if codec is None:
        raise InvalidFieldError(
            f"{what} has the charset {charset[:CHARSET_SHOWN]!r}, and UTF-8 or ISO-8859-1 is taken"
        )
    return codec


def as_utf8(data: bytes, codec: str) -> bytes:
    """Return `data`, text in `codec`, as UTF-8 without a byte order mark."""
    if codec != "utf-8":
        return data.decode(codec).encode()
    return data.removeprefix(codecs.BOM_UTF8)
