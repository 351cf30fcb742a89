"""What image files declare of themselves, read or checked before a library believes it.

A few bytes can ask a decoder for gigabytes or minutes: a length that no file has, a million empty
parts, pixels that are gone over again and again. All of it is told by walking over the parts
without reading them, and bounded far above what cameras and image programs write.
"""

import re
import struct
from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np

from server.errors import UndecodableImageError

EXIF_ORIENTATION = 0x0112

JPEG_SIGNATURE = b"\xff\xd8\xff"
# What lies before it belongs to nothing: zeros that some cameras pad with, FF in any number.
JPEG_MARKER = re.compile(rb"\xff([^\0\xff])")
JPEG_STANDALONE = {0x01, *range(0xD0, 0xD9)}
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
JPEG_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
JPEG_FRAME = struct.Struct(">BHBHHB")
JPEG_END, JPEG_SCAN, JPEG_APP1 = 0xD9, 0xDA, 0xE1
JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
# A profile alone may have 255 segments; depth maps and thermal images come in hundreds.
MAX_SEGMENTS = 1000
# Each goes over all pixels again, and may be a few bytes long. Encoders write a dozen.
MAX_SCANS = 100

PNM_SIGNATURE = re.compile(rb"P[1-6](?:[\s#]|\Z)")
# Numbers with space between, in which each # begins a comment up to the line's end.
PNM_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+([0-9]{1,9})(?=[\s#])")
# Where the pixels begin at the latest. All before, comments too, is read by the byte.
MAX_PNM_HEADER = 1 << 16

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNK = struct.Struct(">I4s")
# A row of pixels may have a chunk of its own; texts and profiles come in dozens.
MAX_CHUNKS, MAX_CHUNKS_BEFORE_PIXELS = 100_000, 1_000
# libpng inflates each of them, up to 8 MB, only to drop it. Pillow bounds those before the pixels.
MAX_TEXTS_AFTER_PIXELS = 16

TIFF_SIGNATURES = (b"II*\0", b"II+\0", b"II\0*", b"MM\0*", b"MM\0+", b"MM*\0")
# Bytes of a value by its type: TIFF 6.0, section 2, and the three that BigTIFF adds.
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
TIFF_SIZES |= {16: 8, 17: 8, 18: 8}
TIFF_SHORT, TIFF_LONG = 3, 4
# libtiff takes no larger directory; a strip for every row and colour, or small tiles, stay below.
MAX_TAGS, MAX_TIFF_NUMBERS = 4096, 1 << 18


class Header(msgspec.Struct, frozen=True):
    """What an image file says of itself. Sizes in pixels as stored, before `orientation` (EXIF
    1..8) is applied. white: the value of a full sample, where neither 8 nor 16 bits hold just it
    and OpenCV does not scale by it."""

    format: str
    mode: str
    width: int
    height: int
    orientation: int = 1
    white: int | None = None

    @property
    def transposed(self) -> bool:
        """Whether showing the image upright swaps its sides."""
        return self.orientation >= 5


def read_jpeg(data: bytes) -> Header:
    """The header of a JPEG (ITU-T T.81, annex B), by its segments up to the first scan.

    Raises UndecodableImageError where there is none, for samples of other than 8 bits, and for
    more segments or scans than any picture needs.
    """
    at, frame, exif = 2, b"", b""
    for _ in range(MAX_SEGMENTS):
        found = JPEG_MARKER.search(data, at)
        if found is None or data[found.end() - 1] == JPEG_END:
            raise UndecodableImageError("the JPEG is cut off or damaged: it has no pixels")
        at, marker = found.end(), data[found.end() - 1]
        if marker in JPEG_STANDALONE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            raise UndecodableImageError(
                f"the JPEG is cut off or damaged: a segment declares {length} bytes and"
                f" {len(data) - at} are left"
            )
        if marker == JPEG_SCAN:
            return _jpeg_header(data, at, frame, exif)
        if marker in JPEG_FRAMES and not frame:
            frame = data[at - 1 : at + length]
        elif marker == JPEG_APP1 and not exif and data.startswith(b"Exif\0\0", at + 2):
            exif = data[at + 2 : at + length]
        at += length
    raise UndecodableImageError(f"the JPEG has more than {MAX_SEGMENTS} segments before its pixels")


def _jpeg_header(data: bytes, scan: int, frame: bytes, exif: bytes) -> Header:
    """As `read_jpeg`. scan: where the first scan's header begins; frame: the frame's marker and
    its header."""
    if len(frame) < JPEG_FRAME.size:
        raise UndecodableImageError("the JPEG is damaged: it does not say how large it is")
    marker, _, bits, height, width, components = JPEG_FRAME.unpack_from(frame)
    mode = JPEG_MODES.get(components)
    if bits != 8 or mode is None or not (width and height):
        raise UndecodableImageError(
            f"the JPEG has {width} x {height} pixels of {components} components of {bits} bits:"
            " 1, 3 or 4 of 8 bits are read"
        )
    if marker in JPEG_PROGRESSIVE or data[scan + 2 : scan + 3] < bytes([components]):
        codes = np.frombuffer(data, np.uint8)[scan:]
        scans = 1 + np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == JPEG_SCAN))
        if scans > MAX_SCANS:
            raise UndecodableImageError(f"the JPEG goes over its pixels {scans} times")
    return Header("JPEG", mode, width, height, orientation(exif))


def read_pnm(data: bytes) -> Header:
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


def check_png(data: bytes) -> None:
    """Raises UndecodableImageError for a PNG with a chunk longer than what is left of the file, or
    with more chunks than any picture needs (PNG, third edition, section 5: Datastream structure).
    """
    at, texts, pixels = len(PNG_SIGNATURE), 0, False
    for number in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise UndecodableImageError("the PNG is cut off: its last chunk is missing")
        length, kind = PNG_CHUNK.unpack_from(data, at)
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


def check_tiff(data: bytes) -> None:
    """Raises UndecodableImageError for a TIFF whose first directory declares more than the file
    holds: libraries copy the values of each tag, even where all tags point to the same bytes."""
    declared = 0
    for _, kind, number, _ in _tags(data):
        size = TIFF_SIZES.get(kind, 0)
        if size > 1 and number > MAX_TIFF_NUMBERS:
            raise UndecodableImageError(f"the TIFF is damaged: a tag declares {number} numbers")
        declared += size * number
    if declared > len(data):
        raise UndecodableImageError(
            f"the TIFF is damaged: its tags declare {declared} bytes and the file has {len(data)}"
        )


def orientation(exif: bytes) -> int:
    """The orientation 1..8 that an EXIF block asks for (Exif 2.3, section 4.6.4, tag 0x0112), with
    or without the name before it; 1 where it says nothing or is damaged."""
    block = exif.removeprefix(b"Exif\0\0")
    if not block.startswith(TIFF_SIGNATURES):
        return 1
    order: Literal["little", "big"] = "little" if block.startswith(b"II") else "big"
    try:
        for tag, kind, _, value in _tags(block):
            if tag == EXIF_ORIENTATION and kind in (TIFF_SHORT, TIFF_LONG):
                found = int.from_bytes(value[: TIFF_SIZES[kind]], order)
                return found if found in range(1, 9) else 1
    except UndecodableImageError:
        pass  # a damaged block says nothing about the pixels
    return 1


def _tags(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The entries of the first directory, as far as it is there: tag, type, number of values, and
    the value or its offset (TIFF 6.0, section 2; libtiff.gitlab.io/libtiff/specification/bigtiff).
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
