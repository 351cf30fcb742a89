"""The orientation in an EXIF block, and the TIFF directories that EXIF shares with TIFF files."""

import struct
from collections.abc import Iterator
from typing import Literal

from server.errors import UndecodableImageError

EXIF_ORIENTATION = 0x0112

TIFF_SIGNATURES = (b"II*\0", b"II+\0", b"II\0*", b"MM\0*", b"MM\0+", b"MM*\0")
# Bytes of a value by its type: TIFF 6.0, section 2, and the three that BigTIFF adds.
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TIFF_SIZES |= {16: 8, 17: 8, 18: 8}
TIFF_SHORT, TIFF_LONG = 3, 4
# libtiff takes no larger directory.
MAX_TAGS = 4096


def orientation(exif: bytes) -> int:
    """The orientation 1..8 that an EXIF block asks for (Exif 2.3, section 4.6.4, tag 0x0112), with
    or without the name before it; 1 where it says nothing or is damaged."""
    block = exif.removeprefix(b"Exif\0\0")
    if not block.startswith(TIFF_SIGNATURES):
        return 1
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"
    try:
        for tag, kind, number, value in read_tags(block):
            if tag == EXIF_ORIENTATION and kind in (TIFF_SHORT, TIFF_LONG) and number == 1:
                found = int.from_bytes(value[: TIFF_SIZES[kind]], order)
                return found if found in range(1, 9) else 1
    except UndecodableImageError:
        pass  # a damaged block says nothing about the pixels
    return 1


def read_tags(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The entries of the first directory, as far as it is there: tag, type, number of values, and
    the value or its offset (TIFF 6.0, section 2; libtiff.gitlab.io/libtiff/specification/bigtiff).

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
