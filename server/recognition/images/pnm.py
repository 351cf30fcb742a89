"""PBM, PGM and PPM, plain or binary (netpbm.sourceforge.net/doc/pnm.html), read by numpy alone.

Programs read some files differently: a comment directly behind a number ends it for one and is cut
out of it for another. Such files are refused, and so are those that hold less or more than their
header declares, since nothing else in a PNM shows damage.
"""

import re
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError
from server.recognition.images.header import Header
from server.recognition.images.pixels import Pixels, to_8_bits
from server.values.wording import counted

SIGNATURE = re.compile(rb"P[1-6](?:[\s#]|\Z)")
# Space or comments, and a number with space behind it. A comment ends with its line.
NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+([0-9]{1,9})(?=\s)")
# Plain numbers are read so many bytes at a time, up to the next space.
ANY_SPACE, TEXT_BLOCK = re.compile(rb"\s"), 1 << 20
COMMENT = re.compile(rb"#[^\r\n]*")
# Largest offset of the pixels. All before, comments too, is read by the byte.
MAX_HEADER = 1 << 16
BITS, RAW_BITS, PLAIN, COLORS = 1, 4, (1, 2, 3), (3, 6)
SPACE = b" \t\n\v\f\r"
DIGITS = b"0123456789"
# Samples that are scaled at a time.
BLOCK_SAMPLES = 1 << 18


class _Layout(NamedTuple):
    """Content of a header. kind: 1..6 of P1..P6; white: the value of a full sample, 1..65535;
    start: offset of the raster."""

    kind: int
    width: int
    height: int
    white: int
    start: int

    @property
    def channels(self) -> int:
        return 3 if self.kind in COLORS else 1


def read_header(data: bytes) -> Header:
    """Returns the header of a PBM, PGM or PPM.

    Raises UndecodableImageError if it is damaged, cut off, longer than `MAX_HEADER`, or if
    programs would read it differently.
    """
    layout = _read_layout(data)
    mode = "RGB" if layout.channels == 3 else "L"
    bits = 16 if layout.white == 0xFFFF else 8
    return Header("PPM", mode, layout.width, layout.height, bits=bits)


def decode(data: bytes, header: Header, significant_bits: int = 0) -> Pixels:
    """Returns a PNM's pixels as RGB, uint8 [height, width, 3]. A sample v of at most `white`
    becomes v * 255 / white, rounded; if `white` is 65535 and `significant_bits` not 0, samples are
    reduced to the upper 8 of their `significant_bits`.

    Raises UndecodableImageError if samples are missing or too large, or if more follows them.
    """
    layout = _read_layout(data)
    if layout.kind == BITS:
        samples = _read_plain_bits(data, layout)
    elif layout.kind == RAW_BITS:
        samples = _read_raw_bits(data, layout)
    elif layout.kind in PLAIN:
        samples = _read_numbers(data, layout, significant_bits)
    else:
        samples = _to_levels(_read_raw(data, layout), layout.white, significant_bits)
    pixels = samples.reshape(layout.height, layout.width, layout.channels)
    if layout.channels == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), np.uint8)
    return pixels if pixels.flags.writeable else pixels.copy()


def _read_layout(data: bytes) -> _Layout:
    kind, at, numbers = data[1] - ord("0"), 2, []
    for _ in range(2 if kind in (BITS, RAW_BITS) else 3):
        number = NUMBER.match(data, at, MAX_HEADER)
        if number is None:
            raise UndecodableImageError(
                "the PPM's header is cut off or damaged, or has a comment directly behind a number,"
                " which programs read differently"
            )
        numbers.append(int(number[1]))
        at = number.end()
    width, height, white = (*numbers, 1)[:3]
    if not (width and height and 0 < white <= 0xFFFF):
        raise UndecodableImageError(
            f"the PPM's header is damaged: {width} x {height} pixels, values up to {white}"
        )
    if kind not in PLAIN and data.startswith(b"\r\n", at):
        raise UndecodableImageError(
            "the PPM's header ends in CR and LF: one byte must stand before the pixels"
        )
    return _Layout(kind, width, height, white, at + 1)


def _read_raw_bits(data: bytes, layout: _Layout) -> NDArray[np.uint8]:
    """Returns the bits of P4 as grey levels [height, width], 0 for 1 and 255 for 0."""
    row = (layout.width + 7) // 8
    _check_size(data, layout, row * layout.height)
    packed = np.frombuffer(data, np.uint8, row * layout.height, layout.start)
    bits = np.unpackbits(packed.reshape(layout.height, row), axis=1, count=layout.width)
    return np.where(bits, np.uint8(0), np.uint8(255))


def _read_raw(data: bytes, layout: _Layout) -> NDArray[Any]:
    """Returns the samples of P5 and P6: of one byte, or of two with the upper one first."""
    kind = np.dtype(np.uint8 if layout.white < 0x100 else ">u2")
    number = layout.width * layout.height * layout.channels
    _check_size(data, layout, number * kind.itemsize)
    return np.frombuffer(data, kind, number, layout.start)


def _check_size(data: bytes, layout: _Layout, size: int) -> None:
    """Raises UndecodableImageError if fewer than `size` bytes of pixels are there, or if more than
    a line's end follows them."""
    if layout.start + size > len(data):
        raise UndecodableImageError(
            f"the PPM is cut off: its pixels take {size} bytes and {len(data) - layout.start} are"
            " left"
        )
    rest = data[layout.start + size :]
    if SIGNATURE.match(rest.lstrip(SPACE)):
        raise UndecodableImageError("the PPM has more than one picture: send one")
    if rest not in (b"", b"\n", b"\r\n"):
        raise UndecodableImageError(
            "the PPM is damaged: behind the pixels that its header declares it has"
            f" {counted(len(rest), 'byte')} more"
        )


def _read_plain_bits(data: bytes, layout: _Layout) -> NDArray[np.uint8]:
    """Returns the bits of P1 as grey levels, 0 for 1 and 255 for 0. There may be no space between
    them."""
    text = COMMENT.sub(b"", data[layout.start :]).translate(None, SPACE)
    _check_plain(text, b"01")
    _check_number(len(text), layout)
    return np.where(np.frombuffer(text, np.uint8) == ord("1"), np.uint8(0), np.uint8(255))


def _read_numbers(data: bytes, layout: _Layout, significant_bits: int) -> NDArray[np.uint8]:
    """Returns the samples of P2 and P3, decimal numbers with space between, as levels."""
    text, at = data, layout.start
    if b"#" in data[at:]:
        text, at = data[at:], 0
        if re.search(rb"[0-9]#", text):
            raise UndecodableImageError(
                "the PPM has a comment directly behind a number, which programs read differently"
            )
        text = COMMENT.sub(b"", text)
    levels = np.empty(layout.width * layout.height * layout.channels, np.uint8)
    number = 0
    while at < len(text):
        space = ANY_SPACE.search(text, at + TEXT_BLOCK)
        end = space.start() if space else len(text)
        words, at = text[at:end].strip(SPACE), end
        _check_plain(words, DIGITS + SPACE)
        if re.search(rb"[0-9]{10}", words):
            raise UndecodableImageError("the PPM is damaged: it has a number of ten digits")
        if not words:
            continue
        samples = np.fromstring(words, np.int64, sep=" ")
        number += len(samples)
        if number > len(levels):
            break
        levels[number - len(samples) : number] = _to_levels(samples, layout.white, significant_bits)
    _check_number(number, layout)
    return levels


def _check_plain(text: bytes, allowed: bytes) -> None:
    """Raises UndecodableImageError if `text` has other bytes than `allowed`."""
    if text.translate(None, allowed):
        raise UndecodableImageError("the PPM is damaged: its pixels are not plain numbers")


def _check_number(number: int, layout: _Layout) -> None:
    """Raises UndecodableImageError if there are other than `number` samples."""
    need = layout.width * layout.height * layout.channels
    if number != need:
        raise UndecodableImageError(
            f"the PPM is cut off or damaged: its header declares {need} samples and it has"
            f" {'fewer' if number < need else 'more'}"
        )


def _to_levels(samples: NDArray[Any], white: int, significant_bits: int) -> NDArray[np.uint8]:
    """Returns samples 0..white as levels 0..255. Raises UndecodableImageError for a sample above
    `white`, and, if `white` is 65535, for one of more than `significant_bits`."""
    largest = int(samples.max())
    if largest > white:
        raise UndecodableImageError(
            f"the PPM is damaged: it has a sample of {largest}, and its header says that {white}"
            " is the largest"
        )
    if white == 0xFFFF and significant_bits:
        return to_8_bits(samples, significant_bits)
    if white == 0xFF and samples.dtype == np.uint8:
        return np.asarray(samples, np.uint8)
    scale = ((np.arange(white + 1) * 510 + white) // (2 * white)).astype(np.uint8)
    levels = np.empty(len(samples), np.uint8)
    # Block by block, since numpy takes eight bytes for every index.
    for start in range(0, len(samples), BLOCK_SAMPLES):
        levels[start : start + BLOCK_SAMPLES] = scale[samples[start : start + BLOCK_SAMPLES]]
    return levels
