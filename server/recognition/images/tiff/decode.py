"""TIFF (TIFF 6.0), classic and BigTIFF, read by numpy: every pixel as the file has it, or refused.

Strips and tiles are decompressed one at a time by `compression`, whose readers notice what
libtiff only logs. Without compression, and in the literal runs of PackBits, any byte is a pixel, so
that damage shows only if sizes or offsets do not fit.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError
from server.recognition.images.header import TIFF_SIGNATURES, Header
from server.recognition.images.pixels import Pixels, to_8_bits
from server.recognition.images.tiff.ccitt import decode_group4
from server.recognition.images.tiff.compression import decode_jpeg, decode_lzw, inflate, unpack_bits
from server.recognition.images.tiff.layout import (
    CMYK,
    COLORS,
    DEFLATE,
    GROUP4,
    JPEG,
    LZW,
    OLD_DEFLATE,
    PACK_BITS,
    WHITE_IS_ZERO,
    YCBCR,
    Kind,
    Layout,
    read_layout,
    refuse,
)

SIGNATURES = TIFF_SIGNATURES
# Samples that are converted at a time.
BLOCK_SAMPLES = 1 << 18
# Changes of colour in a picture of CCITT data; a page of text has some 100,000.
MAX_CHANGES = 1 << 22
REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def read_header(data: bytes) -> Header:
    """Returns the header of a TIFF.

    Raises UndecodableImageError if it is damaged, declares what the file does not hold, or has
    more than one picture or pixels of a kind that is not read.
    """
    layout = read_layout(data)
    mode = COLORS[layout.kind.photometric][1]
    kind = layout.kind
    # All 16 bits of an ink are always used.
    bits = 16 if kind.bits == 16 and kind.photometric != CMYK else 8
    return Header("TIFF", mode, layout.width, layout.height, layout.orientation, bits)


def decode(data: bytes, header: Header, significant_bits: int = 0) -> Pixels:
    """Returns a TIFF's pixels as RGB, uint8 [height, width, 3], as stored: no orientation is
    applied.

    Grey is repeated; samples of 16 bits are reduced to the upper 8 of their `significant_bits` (0:
    of all 16), those of other depths scaled to 255; an alpha channel is dropped, or refused if
    colours are multiplied by it; CMYK becomes ink times black.

    Raises UndecodableImageError if any strip or tile is damaged.
    """
    layout = read_layout(data)
    pixels = np.empty((layout.height, layout.width, 3), np.uint8)
    for place, parts in _parts(layout):
        raws = [_read_part(data, layout, part, place.rows) for part in parts]
        _convert(raws, layout, place, significant_bits, pixels)
    return pixels


class _Place(NamedTuple):
    """A part's place in the picture. rows, columns: of the part; the picture may have fewer."""

    top: int
    left: int
    rows: int
    columns: int


def _parts(layout: Layout) -> Iterator[tuple[_Place, list[int]]]:
    """Yields each place with the numbers of its parts, one for each plane."""
    across = -(-layout.width // layout.part_width)
    number = len(layout.offsets) // layout.planes
    for index in range(number):
        top = index // across * layout.part_height
        left = index % across * layout.part_width
        rows = layout.part_height if layout.tiled else min(layout.part_height, layout.height - top)
        place = _Place(top, left, rows, layout.part_width)
        yield place, [index + plane * number for plane in range(layout.planes)]


def _read_part(data: bytes, layout: Layout, part: int, rows: int) -> Any:
    """Returns the bytes of a strip or tile, decompressed, exactly `rows` rows. Some programs fill
    up the last strip with rows below the picture, which are left out."""
    packed = data[layout.offsets[part] : layout.offsets[part] + layout.sizes[part]]
    if layout.reverse:
        packed = packed.translate(REVERSED)
    kind = layout.kind
    channels = kind.samples // layout.planes
    if layout.compression == JPEG:
        is_ycbcr = kind.photometric == YCBCR
        shape = (layout.part_width, rows, channels)
        return decode_jpeg(packed, layout.tables, shape, layout.part_height, is_ycbcr)
    if layout.compression == GROUP4:
        share = layout.part_width * rows / (layout.width * layout.height)
        return decode_group4(packed, layout.part_width, rows, math.ceil(MAX_CHANGES * share))
    row = (layout.part_width * channels * kind.bits + 7) // 8
    most = row * layout.part_height
    raw: bytes | bytearray
    if layout.compression == LZW:
        raw = decode_lzw(packed, most)
    elif layout.compression == PACK_BITS:
        raw = unpack_bits(packed, row, most)
    elif layout.compression in (DEFLATE, OLD_DEFLATE):
        raw = inflate(packed, most)
    else:
        raw = packed
    if len(raw) not in (row * rows, most):
        raise UndecodableImageError(
            f"the TIFF is cut off or damaged: a strip or tile has {len(raw)} bytes in place of"
            f" {row * rows}"
        )
    return np.frombuffer(raw, np.uint8, row * rows).reshape(rows, row)


def _convert(
    raws: list[Any], layout: Layout, place: _Place, significant_bits: int, pixels: Pixels
) -> None:
    """Writes a part of the picture, given the bytes of each of its planes, into `pixels`."""
    kind = layout.kind
    rows = min(place.rows, layout.height - place.top)
    columns = min(place.columns, layout.width - place.left)
    step = max(1, BLOCK_SAMPLES // (place.columns * kind.samples))
    for start in range(0, rows, step):
        end = min(rows, start + step)
        planes = [_unpack(raw[start:end], layout, place.columns) for raw in raws]
        samples = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        target = pixels[place.top + start : place.top + end, place.left : place.left + columns]
        target[...] = _to_rgb(samples[:, :columns], kind, significant_bits)


def _unpack(raw: NDArray[np.uint8], layout: Layout, columns: int) -> NDArray[Any]:
    """Turns bytes [rows, bytes of a row] to samples [rows, columns, samples of a pixel and
    plane]."""
    bits, rows = layout.kind.bits, len(raw)
    channels = layout.kind.samples // layout.planes
    samples: NDArray[Any] = raw
    if bits == 16:
        samples = raw.view(layout.order + "u2").astype(np.uint16)
    elif bits != 8:
        number = columns * channels
        single = np.unpackbits(raw, axis=1, count=number * bits).reshape(rows, number, bits)
        samples = np.zeros((rows, number), np.uint16)
        for bit in range(bits):
            samples = samples << 1 | single[..., bit]
    samples = samples.reshape(rows, columns, channels)
    if layout.predictor:
        samples = np.cumsum(samples, axis=1, dtype=samples.dtype)
    return samples


def _to_rgb(samples: NDArray[Any], kind: Kind, significant_bits: int) -> Pixels:
    """Converts samples [rows, columns, samples of a pixel] -> grey levels that fit [rows, columns,
    3]."""
    if kind.opaque and (samples[..., kind.colors] != kind.white).any():
        raise refuse("colours that are multiplied by an alpha channel")
    colors = samples[..., : kind.colors]
    if kind.palette is not None:
        return np.asarray(kind.palette[colors[..., 0]], np.uint8)
    levels = _to_levels(colors, kind, significant_bits)
    if kind.photometric == WHITE_IS_ZERO:
        return np.asarray(255 - levels, np.uint8)
    if kind.photometric == CMYK:
        paper = 255 - levels.astype(np.uint32)
        return np.asarray((paper[..., :3] * paper[..., 3:] + 127) // 255, np.uint8)
    return levels


def _to_levels(samples: NDArray[Any], kind: Kind, significant_bits: int) -> Pixels:
    if kind.bits == 8:
        return np.asarray(samples, np.uint8)
    if kind.bits == 16:
        return to_8_bits(samples, significant_bits)
    return ((samples.astype(np.uint32) * 510 + kind.white) // (2 * kind.white)).astype(np.uint8)
