"""The charsets in which text is taken: UTF-8, of which US-ASCII is a part, and Latin-1.

Python knows a hundred more, by name. Some of them need a time that grows by the square of the
text's length, and no client of this field sends one.
"""

import codecs

from server.errors import InvalidFieldError

CODECS = {
    **dict.fromkeys(("", "utf-8", "utf8", "us-ascii", "ascii"), "utf-8"),
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin-1", "latin1"), "latin-1"),
}
# Letters of a charset's name that an error message repeats.
SHOWN = 40


def codec_of(charset: str, what: str) -> str:
    """The codec, `utf-8` or `latin-1`, of `what` that says to be in `charset`; UTF-8 where it says
    nothing. Raises InvalidFieldError for any other charset."""
    codec = CODECS.get(charset.strip().lower())
    if codec is None:
        raise InvalidFieldError(
            f"{what} has the charset {charset[:SHOWN]!r}, and UTF-8 or ISO-8859-1 is taken"
        )
    return codec


def as_utf8(data: bytes, codec: str) -> bytes:
    """`data`, text in `codec`, as UTF-8 without a byte order mark."""
    if codec != "utf-8":
        return data.decode(codec).encode()
    return data.removeprefix(codecs.BOM_UTF8)
