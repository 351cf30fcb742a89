"""TIFF files of any kind, written without the libraries that read them."""

import io
import struct
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BYTE, SHORT, LONG, UNDEFINED, LONG8 = 1, 3, 4, 7, 16
SIZES = {BYTE: 1, SHORT: 2, LONG: 4, UNDEFINED: 1, LONG8: 8}
CODES = {BYTE: "B", SHORT: "H", LONG: "I", UNDEFINED: "B", LONG8: "Q"}
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, ROWS, STRIP_SIZES, PLANAR, PREDICTOR = 273, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = 322, 323, 324, 325
COLOR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 320, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5

Tags = dict[int, tuple[int, Sequence[int]]]


class Tiff(NamedTuple):
    """A file and where its pixels lie in it: (offset, size) of each strip or tile."""

    data: bytes
    parts: list[tuple[int, int]]


def assemble(
    tags: Tags, parts: Sequence[bytes], order: str = "<", big: bool = False, tiled: bool = False
) -> Tiff:
    """A TIFF of one picture: header, strips or tiles, tags with their values. Tags of offsets and
    sizes are added unless `tags` has them."""
    begin = 16 if big else 8
    places, body = [], b""
    for part in parts:
        places.append((begin + len(body), len(part)))
        body += part + b"\0" * (len(part) % 2)
    kind = LONG8 if big else LONG
    offsets, sizes = (TILE_OFFSETS, TILE_SIZES) if tiled else (STRIP_OFFSETS, STRIP_SIZES)
    own_tags: Tags = {
        offsets: (kind, [at for at, _ in places]),
        sizes: (kind, [size for _, size in places]),
    }
    return Tiff(
        header(begin + len(body), order, big)
        + body
        + directory(own_tags | tags, begin + len(body), order, big),
        places,
    )


def header(first: int, order: str = "<", big: bool = False) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(order + "HHHQ", 43, 8, 0, first)
    return mark + struct.pack(order + "HI", 42, first)


def directory(
    tags: Tags | Sequence[tuple[int, tuple[int, Sequence[int]]]],
    at: int,
    order: str = "<",
    big: bool = False,
    after: int = 0,
) -> bytes:
    """A directory at the offset `at`, with its values behind it. A mapping is sorted by its tags.
    after: the offset of the next one."""
    entries = sorted(tags.items()) if isinstance(tags, Mapping) else list(tags)
    count, entry, offset, inline = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    size = struct.calcsize("<" + count) + len(entries) * (struct.calcsize("<" + entry) + inline)
    size += struct.calcsize("<" + offset)
    out, values = struct.pack(order + count, len(entries)), b""
    for tag, (kind, numbers) in entries:
        packed = struct.pack(f"{order}{len(numbers)}{CODES.get(kind, 'I')}", *numbers)
        out += struct.pack(order + entry, tag, kind, len(numbers))
        if len(packed) <= inline:
            out += packed.ljust(inline, b"\0")
        else:
            out += struct.pack(order + offset, at + size + len(values))
            values += packed + b"\0" * (len(packed) % 2)
    return out + struct.pack(order + offset, after) + values


def pack_bits(data: bytes, row: int) -> bytes:
    """PackBits, each row for itself."""
    out = bytearray()
    for begin in range(0, len(data), row):
        line, at = data[begin : begin + row], 0
        literal = b""
        while at <= len(line):
            run = 1
            while run < 128 and line[at + run : at + run + 1] == line[at : at + 1] != b"":
                run += 1
            if literal and (run > 2 or at == len(line) or len(literal) == 128):
                out += bytes([len(literal) - 1]) + literal
                literal = b""
            if run > 2:
                out += bytes([257 - run]) + line[at : at + 1]
            else:
                run = 1
                literal += line[at : at + 1]
            at += run
    return bytes(out)


def lzw(data: bytes, narrow_end: bool = False) -> bytes:
    """LZW as libtiff writes it; narrow_end: as its versions before 4.2 wrote the end code."""
    codes, widths = array("H", [256]), array("B", [9])
    # The code of a word by those of the word without its last byte and of that byte.
    table: dict[int, int] = {}
    width, word = 9, -1
    for value in data:
        longer = word << 8 | value
        known = value if word < 0 else table.get(longer)
        if known is not None:
            word = known
            continue
        codes.append(word)
        widths.append(width)
        table[longer] = 258 + len(table)
        if 258 + len(table) > (1 << width) - 1:
            width += 1
        if 258 + len(table) == 4094:
            codes.append(256)
            widths.append(width)
            table, width = {}, 9
        word = value
    if word >= 0:
        codes.append(word)
        widths.append(width)
        if 259 + len(table) > (1 << width) - 1 and not narrow_end:
            width += 1
    codes.append(257)
    widths.append(width)
    places = np.arange(11, -1, -1)
    bits = (np.array(codes)[:, None] >> places) & 1
    return np.packbits(bits[places < np.array(widths)[:, None]].astype(np.uint8)).tobytes()


def group4(data: bytes, width: int) -> bytes:
    """CCITT group 4 of packed rows, by Pillow's libtiff."""
    row = (width + 7) // 8
    rows = np.unpackbits(np.frombuffer(data, np.uint8).reshape(-1, row), axis=1)[:, :width]
    out = io.BytesIO()
    Image.fromarray(rows.astype(bool)).save(out, "TIFF", compression="group4", strip_size=1 << 30)
    image: Any = Image.open(io.BytesIO(out.getvalue()))
    at, size = image.tag_v2[STRIP_OFFSETS][0], image.tag_v2[STRIP_SIZES][0]
    return out.getvalue()[at : at + size]


COMPRESSIONS: dict[str, tuple[int, Callable[[bytes, int, int], bytes]]] = {
    "none": (1, lambda data, row, width: data),
    "lzw": (5, lambda data, row, width: lzw(data)),
    "deflate": (8, lambda data, row, width: zlib.compress(data)),
    "old-deflate": (32946, lambda data, row, width: zlib.compress(data)),
    "packbits": (32773, lambda data, row, width: pack_bits(data, row)),
    "group4": (4, lambda data, row, width: group4(data, width)),
}


def pack_samples(samples: NDArray[Any], bits: int, order: str) -> bytes:
    """Samples [rows, columns, channels] of `bits` bits as rows of whole bytes."""
    rows = samples.reshape(len(samples), -1)
    if bits == 8:
        return rows.astype(np.uint8).tobytes()
    if bits == 16:
        return rows.astype(order + "u2").tobytes()
    single = rows[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(single.reshape(len(rows), -1), axis=1).tobytes()


def write(
    samples: NDArray[Any],
    bits: int = 8,
    photometric: int = RGB,
    compression: str = "lzw",
    *,
    predictor: bool = False,
    planar: bool = False,
    tile: tuple[int, int] | None = None,
    rows: int = 16,
    order: str = "<",
    big: bool = False,
    tags: Tags | None = None,
) -> Tiff:
    """A TIFF of samples [height, width, channels], 0..2**bits - 1, in strips of `rows` rows or in
    tiles of `tile` (width, height); `tags` replace those that would be written."""
    height, width, channels = samples.shape
    number, pack = COMPRESSIONS[compression]
    step_x, step_y = tile or (width, rows)
    parts = []
    for plane in [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]:
        for top in range(0, height, step_y):
            for left in range(0, width, step_x):
                part = plane[top : top + step_y, left : left + step_x]
                if tile:
                    pad = [(0, step_y - part.shape[0]), (0, step_x - part.shape[1]), (0, 0)]
                    part = np.pad(part, pad, "edge")
                if predictor:
                    before = np.pad(part, [(0, 0), (1, 0), (0, 0)])[:, :-1]
                    part = (part.astype(np.int64) - before) % (1 << bits)
                row = -(-part.shape[1] * part.shape[2] * bits // 8)
                parts.append(pack(pack_samples(part, bits, order), row, part.shape[1]))
    own_tags: Tags = {
        WIDTH: (LONG, [width]),
        HEIGHT: (LONG, [height]),
        BITS: (SHORT, [bits] * channels),
        COMPRESSION: (SHORT, [number]),
        PHOTOMETRIC: (SHORT, [photometric]),
        SAMPLES: (SHORT, [channels]),
        PLANAR: (SHORT, [2 if planar else 1]),
    }
    if predictor:
        own_tags[PREDICTOR] = (SHORT, [2])
    if tile:
        own_tags |= {TILE_WIDTH: (LONG, [tile[0]]), TILE_HEIGHT: (LONG, [tile[1]])}
    else:
        own_tags[ROWS] = (LONG, [rows])
    return assemble(own_tags | (tags or {}), parts, order, big, tile is not None)
