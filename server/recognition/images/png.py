"""PNG: what a file declares is checked before a library believes it."""

import struct

from server.errors import UndecodableImageError
from server.recognition.images import opencv, pillow
from server.recognition.images.header import Header, Pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK = struct.Struct(">I4s")
# A row of pixels may have a chunk of its own; texts and profiles come in dozens.
MAX_CHUNKS, MAX_CHUNKS_BEFORE_PIXELS = 100_000, 1_000
# libpng inflates each of them, up to 8 MB, only to drop it. Pillow bounds those before the pixels.
MAX_TEXTS_AFTER_PIXELS = 16


def read_header(data: bytes) -> Header:
    """The header of a PNG.

    Raises UndecodableImageError if it is damaged or cut off, or has more chunks than a picture.
    """
    check_png(data)
    return pillow.read_header(data, "PNG")


def decode(data: bytes, header: Header) -> Pixels:
    """A PNG's pixels as RGB, uint8 [height, width, 3]; alpha is dropped.

    Raises UndecodableImageError if it does not decode.
    """
    return opencv.decode(data, "PNG")


def check_png(data: bytes) -> None:
    """Raises UndecodableImageError for a PNG with a chunk longer than what is left of the file, or
    with more chunks than any picture needs (PNG, third edition, section 5: Datastream structure).
    """
    at, texts, pixels = len(SIGNATURE), 0, False
    for number in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise UndecodableImageError("the PNG is cut off: its last chunk is missing")
        length, kind = CHUNK.unpack_from(data, at)
        if at + 12 + length > len(data):
            raise UndecodableImageError(
                f"the PNG is cut off or damaged: a chunk declares {length} bytes and"
                f" {len(data) - at - 12} are left"
            )
        if kind == b"IEND":
            return
        if kind == b"IDAT":
            pixels = True
        elif pixels:
            texts += kind in (b"zTXt", b"iTXt")
        if (number >= MAX_CHUNKS_BEFORE_PIXELS and not pixels) or texts > MAX_TEXTS_AFTER_PIXELS:
            break
        at += 12 + length
    raise UndecodableImageError("the PNG has more chunks than a picture needs")
