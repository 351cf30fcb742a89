"""WebP (RFC 9649), read from a file that is rebuilt of the chunks that hold the picture.

WebP has no checksum, and libwebp fills up what is damaged. But an encoder ends its codes within the
last bytes of the picture's chunk. So a picture that decodes without these is damaged: its codes
were read differently from how they were written, and ended too early.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from server.errors import UndecodableImageError
from server.recognition.images.header import Header, read_orientation
from server.recognition.images.pixels import Pixels, decode_by_opencv

SIGNATURE = re.compile(rb"RIFF.{4}WEBP", re.DOTALL)
CHUNK = struct.Struct("<4sI")
RIFF, FIRST_CHUNK, MAX_CHUNKS = 8, 12, 1000
LOSSY, LOSSLESS, EXTENDED, ALPHA = b"VP8 ", b"VP8L", b"VP8X", b"ALPH"
# Begin with a flag, a size of 24 bits less 1 in both directions; the flag of alpha in the first.
EXTENDED_SIZE, ALPHA_FLAG, EXIF_FLAG, ANIMATION_FLAG = 10, 0x10, 0x08, 0x02
KNOWN_FLAGS = 0x3E
ANIMATION = (b"ANIM", b"ANMF")
# VP8's frame tag, start code and sizes (RFC 6386, 9.1); VP8L's signature and sizes.
LOSSY_HEADER, START_CODE = struct.Struct("<HB3sHH"), b"\x9d\x01\x2a"
LOSSLESS_HEADER, LOSSLESS_SIGNATURE = struct.Struct("<BI"), 0x2F
# Without so many bytes of its end, no picture that libwebp encodes decodes.
TAIL = {LOSSY: 4, LOSSLESS: 1}
# OpenCV takes no smaller file.
FILE_BYTES_MIN = 32


class _Picture(NamedTuple):
    """The chunks of the picture. kind: LOSSY or LOSSLESS; data: its bytes; alpha: those of ALPH
    and exif those of EXIF, empty if there is none."""

    kind: bytes
    data: bytes
    alpha: bytes
    exif: bytes
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Returns the header of a WebP, after a walk over its chunks.

    Raises UndecodableImageError if it is damaged or cut off, or an animation.
    """
    picture = _read_picture(data)
    orientation = read_orientation(picture.exif)
    return Header("WEBP", "RGB", picture.width, picture.height, orientation)


def decode(data: bytes, header: Header) -> Pixels:
    """Returns a WebP's pixels as RGB, uint8 [height, width, 3]; alpha is dropped.

    Raises UndecodableImageError if it is damaged. The picture is decoded twice for that.
    """
    picture = _read_picture(data)
    if _decodes(_file(_last_chunk(picture.kind, picture.data[: -TAIL[picture.kind]]))):
        raise UndecodableImageError("the WEBP is damaged: its pixels end before its data")
    chunks = _last_chunk(picture.kind, picture.data)
    if picture.alpha:
        chunks = _extended(picture) + _chunk(ALPHA, picture.alpha) + chunks
    return decode_by_opencv(_file(chunks).ljust(FILE_BYTES_MIN, b"\0"), "WEBP")


def _decodes(data: bytes) -> bool:
    try:
        decode_by_opencv(data, "WEBP")
    except UndecodableImageError:
        return False
    return True


def _chunk(kind: bytes, data: bytes) -> bytes:
    return _last_chunk(kind, data) + bytes(len(data) % 2)


def _last_chunk(kind: bytes, data: bytes) -> bytes:
    """Returns a chunk without the byte that fills it up, which libwebp would read as one of its
    codes."""
    return CHUNK.pack(kind, len(data)) + data


def _file(chunks: bytes) -> bytes:
    return CHUNK.pack(b"RIFF", 4 + len(chunks)) + b"WEBP" + chunks


def _extended(picture: _Picture) -> bytes:
    size = [(side - 1).to_bytes(3, "little") for side in (picture.width, picture.height)]
    return _chunk(EXTENDED, bytes((ALPHA_FLAG, 0, 0, 0)) + b"".join(size))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the chunks of the file: type and data.

    Raises UndecodableImageError for one that is longer than what is left, too many of them, and
    bytes behind them that are no padding.
    """
    end = RIFF + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise UndecodableImageError(
            f"the WEBP is cut off: it declares {end} bytes and has {len(data)}"
        )
    if data[end:].strip(b"\0"):
        raise UndecodableImageError(f"the WEBP is damaged: {len(data) - end} bytes follow its end")
    at = FIRST_CHUNK
    for _ in range(MAX_CHUNKS):
        if at == end:
            return
        if at + CHUNK.size > end:
            break
        kind, size = CHUNK.unpack_from(data, at)
        at += CHUNK.size
        if at + size > end:
            break
        yield kind, data[at : at + size]
        at += size
        # The byte that fills an odd chunk up may be missing behind the last one.
        if size % 2 and at < end:
            if data[at]:
                break
            at += 1
    raise UndecodableImageError(
        "the WEBP is damaged: its chunks do not fill it, or are more than a picture needs"
    )


def _read_picture(data: bytes) -> _Picture:
    canvas: tuple[int, int] | None = None
    flags, kind, alpha, block, content = 0, b"", b"", b"", b""
    for number, (name, part) in enumerate(_chunks(data)):
        first = name == EXTENDED or (name in (LOSSY, LOSSLESS) and not canvas)
        if first != (number == 0) or (name == EXTENDED and len(part) != EXTENDED_SIZE):
            raise UndecodableImageError("the WEBP's header is damaged")
        if name == EXTENDED:
            if part[0] & ~KNOWN_FLAGS:
                raise UndecodableImageError("the WEBP's header is damaged")
            flags, canvas = part[0], (_side(part[4:7]), _side(part[7:10]))
        if name in ANIMATION or flags & ANIMATION_FLAG:
            raise UndecodableImageError("the WEBP is an animation: send one picture")
        if name in (LOSSY, LOSSLESS):
            if kind:
                raise UndecodableImageError("the WEBP is damaged: it has more than one picture")
            kind, content = name, part
        elif name == ALPHA and canvas and not (alpha or kind):
            alpha = part
        elif name == b"EXIF" and flags & EXIF_FLAG and not block:
            block = part
    if not kind:
        raise UndecodableImageError("the WEBP is cut off or damaged: it has no picture")
    width, height = _read_size(kind, content)
    if canvas not in (None, (width, height)) or (alpha and kind == LOSSLESS):
        raise UndecodableImageError("the WEBP is damaged: its picture does not fit its header")
    return _Picture(kind, content, alpha, block, width, height)


def _side(stored: bytes) -> int:
    return 1 + int.from_bytes(stored, "little")


def _read_size(kind: bytes, data: bytes) -> tuple[int, int]:
    """Reads width and height from the picture's own header."""
    if kind == LOSSLESS and len(data) > LOSSLESS_HEADER.size:
        signature, bits = LOSSLESS_HEADER.unpack_from(data)
        # 14 bits each, one for alpha, and a version that is 0.
        if signature == LOSSLESS_SIGNATURE and not bits >> 29:
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == LOSSY and len(data) > LOSSY_HEADER.size:
        low, high, code, width, height = LOSSY_HEADER.unpack_from(data)
        tag = low | high << 16
        # The lowest bit is 0 in a picture that needs none before it; the upper ones are the size
        # of its first part.
        if not tag & 1 and code == START_CODE and tag >> 5 < len(data):
            return width & 0x3FFF, height & 0x3FFF
    raise UndecodableImageError("the WEBP's header is damaged")
