"""The header of an image file, read before it is decoded, and a server's limits for images.

Imports nothing heavy: settings are read before the process is set up for NumPy and OpenCV.
"""

import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

from server.errors import UndecodableImageError

# All formats that are read, and those that a server takes unless its settings name others.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
DEFAULT_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Bits that a camera may really fill of samples stored in 16.
MIN_SIGNIFICANT_BITS, MAX_SIGNIFICANT_BITS = 9, 16

EXIF_ORIENTATION = 0x0112
TIFF_SIGNATURES = (b"II*\0", b"II+\0", b"II\0*", b"MM\0*", b"MM\0+", b"MM*\0")
# Bytes of a value by its type: TIFF 6.0, section 2, and the three that BigTIFF adds.
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TIFF_SIZES |= {16: 8, 17: 8, 18: 8}
TIFF_SHORT, TIFF_LONG = 3, 4
# libtiff takes no larger directory.
MAX_TAGS = 4096


class Limits(msgspec.Struct, frozen=True):
    """Limits of the images that are taken.

    max_pixels: width times height. max_side: pixels of the longer side. formats: those of
    `FORMATS` that are taken. significant_bits: bits that the camera fills of samples stored in 16,
    the lowest; 0 for all.
    """

    max_pixels: int = 50_000_000
    max_side: int = 16_384
    formats: tuple[str, ...] = FORMATS
    significant_bits: int = 0


# Of an image that is only to be named.
ANY_SIZE = Limits(max_pixels=1 << 62, max_side=1 << 31)


class Header(msgspec.Struct, frozen=True):
    """The header of an image file, the same for every format.

    mode: Pillow's name of the kind of pixels. width, height: in pixels as stored, before
    `orientation` (EXIF 1..8) is applied. bits: of a sample; 16 if samples are reduced to their
    upper 8 bits.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int = 1
    bits: int = 8

    @property
    def transposed(self) -> bool:
        """True if showing the image upright swaps its sides."""
        return self.orientation >= 5


def read_orientation(exif: bytes) -> int:
    """Return the orientation 1..8 of an EXIF block, with or without the name before it (Exif 2.3,
    section 4.6.4, tag 0x0112); 1 if it has none or is damaged."""
    block = exif.removeprefix(b"Exif\0\0")
    if not block.startswith(TIFF_SIGNATURES):
        return 1
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"
    try:
        for tag, kind, number, value in read_tags(block):
            if tag == EXIF_ORIENTATION and kind in (TIFF_SHORT, TIFF_LONG) and number == 1:
                orientation = int.from_bytes(value[: TIFF_SIZES[kind]], order)
                return orientation if orientation in range(1, 9) else 1
    except UndecodableImageError:
        pass  # a damaged block says nothing about the pixels
    return 1


def read_tags(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield the entries of the first TIFF directory, as far as it is there: tag, type, number of
    values, and the value or its offset (TIFF 6.0, section 2;
    libtiff.gitlab.io/libtiff/specification/bigtiff).

    Raises UndecodableImageError for more than `MAX_TAGS`.
    """
    order = "<" if data.startswith(b"II") else ">"
    at, offset, count, entry = (8, "Q", "Q", "HHQ8s") if 43 in data[2:4] else (4, "I", "H", "HHI4s")
    count, each = order + count, struct.Struct(order + entry)
    if len(data) < 16:
        return
    (start,) = struct.unpack_from(order + offset, data, at)
    if start + struct.calcsize(count) > len(data):
        return
    (tags,) = struct.unpack_from(count, data, start)
    if tags > MAX_TAGS:
        raise UndecodableImageError(f"the image's header is damaged: it declares {tags} tags")
    start += struct.calcsize(count)
    held = min(tags, (len(data) - start) // each.size)
    yield from each.iter_unpack(data[start : start + held * each.size])
