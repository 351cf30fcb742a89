"""JPEG, through libjpeg-turbo (simplejpeg) in its strict mode, which tells a damaged file from a
good one."""

import math
import re
import struct

import cv2
import numpy as np
import simplejpeg

from server.errors import UndecodableImageError
from server.recognition.images import exif, opencv
from server.recognition.images.header import Header, Pixels

SIGNATURE = b"\xff\xd8\xff"
# What lies before it belongs to nothing: zeros that some cameras pad with, FF in any number.
MARKER = re.compile(rb"\xff([^\0\xff])")
STANDALONE = {0x01, *range(0xD0, 0xD9)}
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
FRAME = struct.Struct(">BHBHHB")
END, SCAN, APP1 = 0xD9, 0xDA, 0xE1
MODES = {1: "L", 3: "RGB", 4: "CMYK"}
# A profile alone may have 255 segments; depth maps and thermal images come in hundreds.
MAX_SEGMENTS = 1000
# Each goes over all pixels again, and may be a few bytes long. Encoders write a dozen.
MAX_SCANS = 100
# libjpeg's warning for bytes that belong to nothing (jdmarker.c); the marker is that after them.
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


def read_header(data: bytes) -> Header:
    """The header of a JPEG (ITU-T T.81, annex B), by its segments up to the first scan.

    Raises UndecodableImageError where there is none, for samples of other than 8 bits, and for
    more segments or scans than any picture needs.
    """
    at, frame, block = 2, b"", b""
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, at)
        if found is None or data[found.end() - 1] == END:
            raise UndecodableImageError("the JPEG is cut off or damaged: it has no pixels")
        at, marker = found.end(), data[found.end() - 1]
        if marker in STANDALONE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            raise UndecodableImageError(
                f"the JPEG is cut off or damaged: a segment declares {length} bytes and"
                f" {len(data) - at} are left"
            )
        if marker == SCAN:
            return _header(data, at, frame, block)
        if marker in FRAMES and not frame:
            frame = data[at - 1 : at + length]
        elif marker == APP1 and not block and data.startswith(b"Exif\0\0", at + 2):
            block = data[at + 2 : at + length]
        at += length
    raise UndecodableImageError(f"the JPEG has more than {MAX_SEGMENTS} segments before its pixels")


def _header(data: bytes, scan: int, frame: bytes, block: bytes) -> Header:
    """As `read_header`. scan: where the first scan's header begins; frame: the frame's marker and
    its header."""
    if len(frame) < FRAME.size:
        raise UndecodableImageError("the JPEG is damaged: it does not say how large it is")
    marker, _, bits, height, width, components = FRAME.unpack_from(frame)
    mode = MODES.get(components)
    if bits != 8 or mode is None or not (width and height):
        raise UndecodableImageError(
            f"the JPEG has {width} x {height} pixels of {components} components of {bits} bits:"
            " 1, 3 or 4 of 8 bits are read"
        )
    if marker in PROGRESSIVE or data[scan + 2 : scan + 3] < bytes([components]):
        codes = np.frombuffer(data, np.uint8)[scan:]
        scans = 1 + np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == SCAN))
        if scans > MAX_SCANS:
            raise UndecodableImageError(f"the JPEG goes over its pixels {scans} times")
    return Header("JPEG", mode, width, height, exif.orientation(block))


def _only_padding(data: bytes, warning: str) -> bool:
    """Whether the bytes that libjpeg could not place are zeros before a marker, as some cameras
    write them, so that the pixels are whole. In a damaged file they are what was left of these."""
    found = EXTRANEOUS.search(warning)
    if found is None:
        return False
    return b"\0" * int(found[1]) + b"\xff" + bytes.fromhex(found[2]) in data


def decode(data: bytes, header: Header, eighths: int = 8) -> Pixels:
    """A JPEG's pixels as RGB, uint8 [height, width, 3], at `eighths` (8, 4, 2 or 1) of its size.

    Raises UndecodableImageError if it is damaged.
    """
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "CMYK" if header.mode == "CMYK" else "RGB",
            min_width=math.ceil(header.width * eighths / 8),
            min_height=math.ceil(header.height * eighths / 8),
        )
    except ValueError as error:
        if not _only_padding(data, str(error)):
            raise UndecodableImageError(f"the JPEG is damaged: {error}") from None
        return opencv.decode(data, "JPEG")
    return _cmyk_to_rgb(pixels) if header.mode == "CMYK" else np.asarray(pixels, np.uint8)


def _cmyk_to_rgb(pixels: Pixels) -> Pixels:
    """Inks as Adobe stores them in JPEG, 255 for none, [h, w, 4] -> RGB: ink times black."""
    black = cv2.cvtColor(pixels[..., 3], cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.multiply(pixels[..., :3], black, scale=1 / 255), np.uint8)
