"""JPEG (ITU-T T.81), through libjpeg-turbo (simplejpeg) in its strict mode, which reports damage
that it could fill up.

It does not report a scan that is missing altogether: the headers of the scans are checked for that.
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from server.errors import UndecodableImageError
from server.recognition.images.header import Header, read_orientation
from server.recognition.images.pixels import Pixels

SIGNATURE = b"\xff\xd8\xff"
# Bytes before it belong to nothing: zeros that some cameras pad with, FF in any number.
MARKER = re.compile(rb"\xff([^\0\xff])")
# The same within a scan, where FF 00 stands for FF, and restart markers are part of it.
SCAN_END = re.compile(rb"\xff([^\0\xff\xd0-\xd7])")
STANDALONE = {0x01, *range(0xD0, 0xD9)}
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
BASELINE, SEQUENTIAL, PROGRESSIVE = 0xC0, 0xC1, 0xC2
FRAME = struct.Struct(">BHBHHB")
END, SCAN, APP1 = 0xD9, 0xDA, 0xE1
MODES = {1: "L", 3: "RGB", 4: "CMYK"}
# A profile alone may have 255 segments; depth maps and thermal images come in hundreds.
MAX_SEGMENTS = 1000
# Each goes over all pixels again, and may be a few bytes long. Encoders write a dozen.
MAX_SCANS, MAX_SCANNED_PIXELS = 100, 1 << 30
COEFFICIENTS = 64
# libjpeg's warning for bytes that belong to nothing (jdmarker.c), and for too few.
EXTRANEOUS, PREMATURE = "extraneous", "remature"
# Zeros before a marker may be the scan's last bytes; of padding as many are left.
ZEROS_AT_SCAN_END = (1, 2)
CONVERTED_ROWS = 64
# As codes, so many zeros are more coefficients of one value than any picture has in a row.
ZEROS = bytes(32)
HUFFMAN_TABLES, AC_CLASS, END_OF_BLOCK = 0xC4, 1, 0


def read_header(data: bytes) -> Header:
    """Returns the header of a JPEG (annex B), by its segments up to the first scan.

    Raises UndecodableImageError if there is none, for kinds that cameras do not write (arithmetic
    coding, lossless, samples of other than 8 bits), and for more segments or scans than any
    picture needs.
    """
    at, frame, block = 2, b"", b""
    for _ in range(MAX_SEGMENTS):
        match = MARKER.search(data, at)
        if match is None or data[match.end() - 1] == END:
            raise UndecodableImageError("the JPEG is cut off or damaged: it has no pixels")
        at, marker = match.end(), data[match.end() - 1]
        if marker in STANDALONE:
            continue
        length = _segment_length(data, at)
        if marker == SCAN:
            return _header(data, at, frame, block)
        if marker in FRAMES:
            if frame:
                raise UndecodableImageError("the JPEG is damaged: it says twice how large it is")
            frame = data[at - 1 : at + length]
        elif marker == APP1 and not block and data.startswith(b"Exif\0\0", at + 2):
            block = data[at + 2 : at + length]
        at += length
    raise UndecodableImageError(f"the JPEG has more than {MAX_SEGMENTS} segments before its pixels")


def _segment_length(data: bytes, at: int) -> int:
    length = int.from_bytes(data[at : at + 2], "big")
    if length < 2 or at + length > len(data):
        raise UndecodableImageError(
            f"the JPEG is cut off or damaged: a segment declares {length} bytes and"
            f" {len(data) - at} are left"
        )
    return length


def _header(data: bytes, scan: int, frame: bytes, block: bytes) -> Header:
    """Makes the header of `read_header`. scan: offset of the first scan's header; frame: the
    frame's marker and its header; block: EXIF's."""
    if len(frame) < FRAME.size:
        raise UndecodableImageError("the JPEG is damaged: it does not say how large it is")
    marker, length, bits, height, width, components = FRAME.unpack_from(frame)
    mode = MODES.get(components)
    if marker not in (BASELINE, SEQUENTIAL, PROGRESSIVE):
        raise UndecodableImageError(
            "the JPEG is coded arithmetically, without loss or in layers of sizes: baseline and"
            " progressive ones are read"
        )
    if bits != 8 or mode is None or not (width and height):
        raise UndecodableImageError(
            f"the JPEG has {width} x {height} pixels of {components} components of {bits} bits:"
            " 1, 3 or 4 of 8 bits are read"
        )
    ids = frame[FRAME.size :: 3]
    if length != 8 + 3 * components or len(set(ids)) != components:
        raise UndecodableImageError("the JPEG is damaged: the header of its frame is")
    if marker == PROGRESSIVE or data[scan + 2 : scan + 3] != bytes([components]):
        scans = _read_scans(data, scan, width * height)
        if marker == PROGRESSIVE:
            _check_progression(ids, scans)
        elif Counter(id_ for each in scans for id_ in each.ids) != Counter(ids):
            raise UndecodableImageError("the JPEG is cut off or damaged: a scan is missing")
    return Header("JPEG", mode, width, height, read_orientation(block))


class _Scan(NamedTuple):
    """A scan's header (B.2.3): its components, the first and last coefficient that it holds, and
    from which bit to which it makes them more precise; high is 0 for the first time."""

    ids: bytes
    first: int
    last: int
    high: int
    low: int


def _read_scans(data: bytes, at: int, pixels: int) -> list[_Scan]:
    """Returns the scans up to the end mark; the first one's header begins at `at`.

    Raises UndecodableImageError if there are too many for a picture of so many pixels.
    """
    scans: list[_Scan] = []
    marker = SCAN
    for _ in range(MAX_SEGMENTS):
        length = _segment_length(data, at)
        if marker == SCAN:
            scans.append(_read_scan(data[at + 2 : at + length]))
            if len(scans) > MAX_SCANS or len(scans) * pixels > MAX_SCANNED_PIXELS:
                raise UndecodableImageError(f"the JPEG goes over its pixels {len(scans)} times")
        match = SCAN_END.search(data, at + length)
        if match is None:
            raise UndecodableImageError("the JPEG is cut off: its end is missing")
        at, marker = match.end(), data[match.end() - 1]
        if marker == END:
            return scans
    raise UndecodableImageError(f"the JPEG has more than {MAX_SEGMENTS} segments")


def _read_scan(header: bytes) -> _Scan:
    number = header[0] if header else 0
    if len(header) != 4 + 2 * number:
        raise UndecodableImageError("the JPEG is damaged: the header of a scan is")
    first, last, bits = header[-3:]
    return _Scan(header[1:-3:2], first, last, bits >> 4, bits & 15)


def _check_progression(ids: bytes, scans: list[_Scan]) -> None:
    """Raises UndecodableImageError unless the scans bring every coefficient of every component to
    its full precision, each bit once (G.1.1.1).

    The standard lets an encoder leave some out, but none is known that does; and of a file that
    lost its last scans, nothing else shows it.
    """
    # The lowest bit that is there so far; None before the first scan of a coefficient.
    low: dict[int, list[int | None]] = {id_: [None] * COEFFICIENTS for id_ in ids}
    for scan in scans:
        if not scan.first <= scan.last < COEFFICIENTS or not set(scan.ids) <= set(ids):
            raise UndecodableImageError("the JPEG is damaged: the header of a scan is")
        for id_ in scan.ids:
            for coefficient in range(scan.first, scan.last + 1):
                before = low[id_][coefficient]
                if scan.high != (before or 0) or before == 0 or (before and scan.low != before - 1):
                    raise UndecodableImageError("the JPEG is damaged: a scan is missing or twice")
                low[id_][coefficient] = scan.low
    if any(bit != 0 for bits in low.values() for bit in bits):
        raise UndecodableImageError("the JPEG is cut off or damaged: its last scans are missing")


def decode(data: bytes, header: Header, eighths: int = 8) -> Pixels:
    """Returns a JPEG's pixels as RGB, uint8 [height, width, 3], at `eighths` (8, 4, 2 or 1) of its
    size.

    Raises UndecodableImageError if it is damaged. Zeros before a marker, with which some cameras
    pad, are no damage.
    """
    try:
        return _decode(data, header, eighths)
    except ValueError as error:
        reason = str(error)
    if EXTRANEOUS in reason:
        for zeros in ZEROS_AT_SCAN_END:
            plain = _without_padding(data, zeros)
            if len(plain) == len(data):
                break
            try:
                return _decode(plain, header, eighths)
            except ValueError as error:
                if PREMATURE not in str(error):
                    break
        raise UndecodableImageError("the JPEG is damaged: some of its bytes belong to nothing")
    if PREMATURE in reason:
        raise UndecodableImageError("the JPEG is cut off or damaged: its pixels end too early")
    raise UndecodableImageError("the JPEG is damaged: its pixels or its tables are")


def _decode(data: bytes, header: Header, eighths: int) -> Pixels:
    """Does the work of `decode`. Raises ValueError with libjpeg's text."""
    if ZEROS in data and _zeros_in_scan(data):
        raise UndecodableImageError("the JPEG is damaged: zeros stand in the middle of its pixels")
    pixels = simplejpeg.decode_jpeg(
        data,
        "CMYK" if header.mode == "CMYK" else "RGB",
        min_width=math.ceil(header.width * eighths / 8),
        min_height=math.ceil(header.height * eighths / 8),
    )
    return _cmyk_to_rgb(pixels) if header.mode == "CMYK" else np.asarray(pixels, np.uint8)


def _zeros_in_scan(data: bytes) -> bool:
    """Returns whether `ZEROS` lie in the only scan of a baseline JPEG before the padding at its
    end. False if a zero is the code that ends a block, as in tables made for a plain picture."""
    first_codes: dict[int, int] = {}
    for start, end, marker in _segments(data):
        segment = data[start + 4 : end]
        if marker == HUFFMAN_TABLES:
            first_codes |= _first_codes(segment)
        elif marker in FRAMES and marker not in (BASELINE, SEQUENTIAL):
            return False
        elif marker == SCAN:
            # The components' tables follow their ids.
            table = segment[2] & 15 if len(segment) > 2 else 0
            if first_codes.get(table) == END_OF_BLOCK:
                return False
            at = data.find(ZEROS, end)
            if at < 0:
                return False
            match = SCAN_END.search(data, end)
            return at < len(data[: match.start() if match else None].rstrip(b"\0"))
    return False


def _first_codes(tables: bytes) -> dict[int, int]:
    """Returns the value of the code of zeros alone, by the number of each AC table (B.2.4.2)."""
    first, at = {}, 0
    while at + 17 < len(tables):
        if tables[at] >> 4 == AC_CLASS:
            first[tables[at] & 15] = tables[at + 17]
        at += 17 + sum(tables[at + 1 : at + 17])
    return first


def _without_padding(data: bytes, zeros: int) -> bytes:
    """Returns the file without zeros between its segments, and with at most `zeros` of them at the
    end of a scan; unchanged if anything but zeros lies between segments."""
    parts, at = [data[:2]], 2
    for start, end, marker in _segments(data):
        if data[at:start].strip(b"\0\xff"):
            return data
        parts.append(data[start:end])
        at = end
        if marker == SCAN:
            match = SCAN_END.search(data, end)
            at = match.start() if match else len(data)
            codes = data[end:at]
            stripped = codes.rstrip(b"\0")
            parts.append(stripped + bytes(min(zeros, len(codes) - len(stripped))))
    return b"".join(parts)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, marker) of each segment up to the end mark."""
    at = 2
    while match := MARKER.search(data, at):
        marker = data[match.end() - 1]
        at = match.end()
        if marker not in STANDALONE and marker != END:
            at += _segment_length(data, at)
        yield match.start(), at, marker
        if marker == END:
            return
        if marker == SCAN:
            match = SCAN_END.search(data, at)
            at = match.start() if match else len(data)


def _cmyk_to_rgb(pixels: Pixels) -> Pixels:
    """Converts inks as Adobe stores them in JPEG, 255 for none, [h, w, 4] -> RGB: ink times
    black."""
    converted: Pixels = np.empty((*pixels.shape[:2], 3), np.uint8)
    for row in range(0, len(pixels), CONVERTED_ROWS):
        inks = pixels[row : row + CONVERTED_ROWS]
        black = cv2.cvtColor(np.ascontiguousarray(inks[..., 3]), cv2.COLOR_GRAY2RGB)
        cv2.multiply(
            np.ascontiguousarray(inks[..., :3]),
            black,
            converted[row : row + CONVERTED_ROWS],
            scale=1 / 255,
        )
    return converted
