"""PBM, PGM and PPM, plain or binary (netpbm.sourceforge.net/doc/pnm.html)."""

import re

from server.errors import UndecodableImageError
from server.recognition.images import opencv
from server.recognition.images.header import Header, Pixels

SIGNATURE = re.compile(rb"P[1-6](?:[\s#]|\Z)")
# Numbers with space between, in which each # begins a comment up to the line's end.
PNM_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+([0-9]{1,9})(?=[\s#])")
# Where the pixels begin at the latest. All before, comments too, is read by the byte.
MAX_PNM_HEADER = 1 << 16
PLAIN = (b"P1", b"P2", b"P3")


def read_header(data: bytes) -> Header:
    """The header of a PBM, PGM or PPM, plain or not (netpbm.sourceforge.net/doc/pnm.html).

    Raises UndecodableImageError where it is cut off, or longer than `MAX_PNM_HEADER`.
    """
    kind, at, numbers = data[1] - ord("0"), 2, []
    for _ in range(2 if kind in (1, 4) else 3):
        found = PNM_NUMBER.match(data, at, MAX_PNM_HEADER)
        if found is None:
            raise UndecodableImageError("the PPM's header is cut off or damaged")
        numbers.append(int(found[1]))
        at = found.end()
    width, height, white = (*numbers, 255)[:3]
    if not (width and height and 0 < white <= 0xFFFF):
        raise UndecodableImageError(
            f"the PPM's header is damaged: {width} x {height} pixels, values up to {white}"
        )
    scaled = white in (0xFF, 0xFFFF) or (kind < 4 and white < 0xFF)
    mode = "RGB" if kind in (3, 6) else "L"
    return Header("PPM", mode, width, height, white=None if scaled else white)


def decode(data: bytes, header: Header) -> Pixels:
    """A PNM's pixels as RGB, uint8 [height, width, 3]; samples are scaled to 255.

    Raises UndecodableImageError if it does not decode.
    """
    if data[:2] in PLAIN:
        data += b"\n"  # OpenCV wants something after the last number
    return opencv.decode(data, "PPM", header.white)
