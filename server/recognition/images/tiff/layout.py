"""The layout of a TIFF: its pixels and their places, or the reason why it is not read.

Only what can be decoded rightly passes: kinds of samples and compressions are listed, and strips or
tiles must be as many as the picture needs, within the file, and apart.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError
from server.recognition.images.tiff.directory import Directory, read_directory
from server.values.wording import counted

# Strips and tiles of one file. A strip for every row and colour, or small tiles, stay below.
MAX_PARTS = 1 << 16
# A tile may be larger than the picture: programs have a size of their own.
TILE_SIDE = 512
# Bits of a pixel: more would take memory out of proportion to the three bytes that it becomes.
MAX_SAMPLES, MAX_PIXEL_BITS = 8, 64

NONE, GROUP4, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACK_BITS = 1, 4, 5, 7, 8, 32946, 32773
COMPRESSIONS = {NONE, GROUP4, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACK_BITS}
COMPRESSION_NAMES = {
    2: "CCITT RLE",
    3: "CCITT group 3",
    6: "old JPEG",
    34712: "JPEG 2000",
    32809: "ThunderScan",
    34661: "JBIG",
    34676: "SGI log",
    34677: "SGI log 24",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
# Samples of a pixel that are colours, and Pillow's name of the mode.
COLORS = {
    WHITE_IS_ZERO: (1, "L"),
    BLACK_IS_ZERO: (1, "L"),
    RGB: (3, "RGB"),
    PALETTE: (1, "P"),
    CMYK: (4, "CMYK"),
    YCBCR: (3, "RGB"),
}
PHOTOMETRIC_NAMES = {
    4: "a mask",
    YCBCR: "YCbCr without JPEG",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "a colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex"}
DEPTHS = (1, 2, 4, 8, 10, 12, 14, 16)
PALETTE_DEPTHS = (1, 2, 4, 8)
ASSOCIATED_ALPHA = 1


class Tag:
    """The numbers of the tags that are read (TIFF 6.0, appendix A)."""

    WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
    FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES = 266, 273, 274, 277
    ROWS_PER_STRIP, STRIP_SIZES, PLANAR, PREDICTOR, COLOR_MAP = 278, 279, 284, 317, 320
    TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = 322, 323, 324, 325
    INK_SET, DOT_RANGE, EXTRA_SAMPLES, SAMPLE_FORMAT, INDEXED = 332, 336, 338, 339, 346
    GROUP4_OPTIONS, JPEG_TABLES, REFERENCE_BLACK_WHITE = 293, 347, 532
    MATTEING, DEPTH, TILE_DEPTH = 32995, 32997, 32998


class Kind(NamedTuple):
    """The kind of the samples. bits: of each; samples: of a pixel; colors: how many of these are
    colours, which come first; opaque: whether the one behind them must be full everywhere;
    palette: uint8 [colours, 3]."""

    photometric: int
    bits: int
    samples: int
    colors: int
    opaque: bool
    palette: NDArray[np.uint8] | None

    @property
    def white(self) -> int:
        return (1 << self.bits) - 1


class Layout(NamedTuple):
    """The places of the samples. planes: 1, or one for each sample of a pixel; part_width,
    part_height: of a strip or tile, the last strip may have fewer rows; offsets, sizes: of the
    parts, row by row and plane by plane; reverse: whether the first pixel is the lowest bit of a
    byte."""

    order: str
    width: int
    height: int
    orientation: int
    kind: Kind
    compression: int
    predictor: bool
    reverse: bool
    planes: int
    tiled: bool
    part_width: int
    part_height: int
    offsets: list[int]
    sizes: list[int]
    tables: bytes


def refuse(what: str) -> UndecodableImageError:
    """Returns the error for something that is not read, in words that follow «the TIFF has»."""
    return UndecodableImageError(f"the TIFF has {what}, which is not read")


def _damaged(fault: str) -> UndecodableImageError:
    return UndecodableImageError(f"the TIFF is damaged: {fault}")


def read_layout(data: bytes) -> Layout:
    """Returns the layout of a TIFF's picture.

    Raises UndecodableImageError if the file is damaged, declares what it does not hold, or has
    more than one picture or pixels of a kind that is not read.
    """
    tags, spans = read_directory(data)
    width, height = tags.number(Tag.WIDTH), tags.number(Tag.HEIGHT)
    if not (width and height):
        raise _damaged(f"it has {width} x {height} pixels")
    compression = tags.number(Tag.COMPRESSION, NONE)
    if compression not in COMPRESSIONS:
        name = COMPRESSION_NAMES.get(compression, f"of number {compression}")
        raise refuse(f"the compression {name}")
    kind = _read_kind(tags, compression)
    planar = tags.number(Tag.PLANAR, 1)
    if planar not in (1, 2):
        raise _damaged(f"its planar configuration is {planar}")
    planes = kind.samples if planar == 2 else 1
    if compression == JPEG and planes > 1:
        raise refuse("JPEG data in planes")
    orientation = tags.number(Tag.ORIENTATION, 1) or 1
    if orientation > 8:
        raise _damaged(f"its orientation is {orientation}")
    for tag in (Tag.DEPTH, Tag.TILE_DEPTH):
        if tags.number(tag, 1) != 1:
            raise refuse("more than two dimensions")
    tiled, part_width, part_height = _part_size(tags, width, height)
    offsets = tags.numbers(Tag.TILE_OFFSETS if tiled else Tag.STRIP_OFFSETS)
    sizes = tags.numbers(Tag.TILE_SIZES if tiled else Tag.STRIP_SIZES)
    _check_parts(
        offsets, sizes, planes * -(-width // part_width) * -(-height // part_height), spans, data
    )
    return Layout(
        order=tags.order,
        width=width,
        height=height,
        orientation=orientation,
        kind=kind,
        compression=compression,
        predictor=_read_predictor(tags, compression, kind),
        reverse=_read_fill_order(tags, compression, kind),
        planes=planes,
        tiled=tiled,
        part_width=part_width,
        part_height=part_height,
        offsets=offsets,
        sizes=sizes,
        tables=tags.raw(Tag.JPEG_TABLES),
    )


def _read_kind(tags: Directory, compression: int) -> Kind:
    photometric = tags.number(Tag.PHOTOMETRIC)
    if photometric not in COLORS or (photometric == YCBCR and compression != JPEG):
        name = PHOTOMETRIC_NAMES.get(photometric, f"of the kind {photometric}")
        raise refuse(f"pixels that are {name}")
    colors = COLORS[photometric][0]
    samples = tags.number(Tag.SAMPLES, 1)
    if not colors <= samples <= MAX_SAMPLES:
        raise refuse(f"pixels of {counted(samples, 'sample')} of this kind")
    bits = _same(tags, Tag.BITS, 1, samples)
    depths = PALETTE_DEPTHS if photometric == PALETTE else DEPTHS
    if bits not in depths or bits * samples > MAX_PIXEL_BITS:
        raise refuse(f"{counted(samples, 'sample')} of {counted(bits, 'bit')} of this kind")
    form = _same(tags, Tag.SAMPLE_FORMAT, 1, samples)
    if form != 1:
        raise refuse(f"{SAMPLE_FORMATS.get(form, 'unknown')} samples")
    if tags.number(Tag.INDEXED, 0) or tags.number(Tag.MATTEING, 0):
        raise refuse("an index or matte by tags of its own")
    if compression == JPEG and (bits != 8 or samples != colors or colors > 3 or colors == 2):
        raise refuse(f"JPEG data of {counted(samples, 'sample')} of {counted(bits, 'bit')}")
    if compression == GROUP4 and (bits != 1 or samples != 1 or photometric == PALETTE):
        raise refuse(f"CCITT data of {counted(samples, 'sample')} of {counted(bits, 'bit')}")
    if compression == GROUP4 and tags.number(Tag.GROUP4_OPTIONS, 0):
        raise refuse("CCITT data with parts that are not compressed")
    if photometric == CMYK and (
        tags.number(Tag.INK_SET, 1) != 1
        or tags.numbers(Tag.DOT_RANGE) not in ([], [0, (1 << bits) - 1])
    ):
        raise refuse("inks of its own")
    range_ = tags.rationals(Tag.REFERENCE_BLACK_WHITE)
    white = (1 << bits) - 1
    middle = 1 << (bits - 1)
    full = [0, white, middle, white, middle, white] if photometric == YCBCR else [0, white] * 3
    if range_ is not None and range_ != full:
        raise refuse("a black and a white of its own")
    extra = tags.numbers(Tag.EXTRA_SAMPLES)
    # OpenCV writes an alpha channel without this tag.
    if len(extra) != samples - colors and (extra or samples - colors > 1):
        raise _damaged(f"it declares {len(extra)} of {samples - colors} extra samples")
    if any(value > 2 for value in extra):
        raise _damaged(f"its extra samples are {extra}")
    opaque = ASSOCIATED_ALPHA in extra
    if opaque and extra.index(ASSOCIATED_ALPHA):
        raise refuse("an alpha channel behind other extra samples")
    palette = _read_palette(tags, bits) if photometric == PALETTE else None
    return Kind(photometric, bits, samples, colors, opaque, palette)


def _same(tags: Directory, tag: int, default: int, samples: int) -> int:
    """Returns the number that a tag has for each sample of a pixel."""
    values = tags.numbers(tag) or [default] * samples
    if len(values) != samples or len(set(values)) != 1:
        raise refuse(
            f"{counted(samples, 'sample')} a pixel and {values[:MAX_SAMPLES]} in the tag {tag}"
        )
    return values[0]


def _read_palette(tags: Directory, bits: int) -> NDArray[np.uint8]:
    colors = np.array(tags.numbers(Tag.COLOR_MAP), np.int64)
    if len(colors) != 3 << bits:
        raise _damaged(f"its palette has {len(colors)} numbers")
    if 0 < colors.max() < 256:
        raise refuse("a palette of 8 bits in place of 16")
    return np.ascontiguousarray((colors.reshape(3, -1).T >> 8).astype(np.uint8))


def _read_predictor(tags: Directory, compression: int, kind: Kind) -> bool:
    """Returns whether samples are stored as differences to the pixel on the left."""
    predictor = tags.number(Tag.PREDICTOR, 1)
    if predictor == 1:
        return False
    if predictor != 2 or kind.bits not in (8, 16) or compression not in (LZW, DEFLATE, OLD_DEFLATE):
        raise refuse(f"the predictor {predictor} with this compression or depth")
    return True


def _read_fill_order(tags: Directory, compression: int, kind: Kind) -> bool:
    fill_order = tags.number(Tag.FILL_ORDER, 1)
    if fill_order not in (1, 2):
        raise _damaged(f"its fill order is {fill_order}")
    if fill_order == 2 and (kind.bits != 1 or compression not in (NONE, GROUP4)):
        raise refuse("the fill order 2 with this compression or depth")
    return fill_order == 2


def _part_size(tags: Directory, width: int, height: int) -> tuple[bool, int, int]:
    """Returns whether the file has tiles, and the width and height of a strip or tile."""
    is_tile = [tag in tags.entries for tag in range(Tag.TILE_WIDTH, Tag.TILE_SIZES + 1)]
    strip_tags = (Tag.STRIP_OFFSETS, Tag.ROWS_PER_STRIP, Tag.STRIP_SIZES)
    if not any(is_tile):
        rows = min(tags.number(Tag.ROWS_PER_STRIP, height), height)
        if not rows:
            raise _damaged("its strips have no rows")
        return False, width, rows
    if not all(is_tile) or any(tag in tags.entries for tag in strip_tags):
        raise _damaged("it has tags of strips and of tiles, or not all of these")
    tile_width, tile_height = tags.number(Tag.TILE_WIDTH), tags.number(Tag.TILE_HEIGHT)
    full_width, full_height = -(-width // 16) * 16, -(-height // 16) * 16
    if (
        not (tile_width and tile_height)
        or tile_width % 16
        or tile_height % 16
        or tile_width > max(TILE_SIDE, full_width)
        or tile_height > max(TILE_SIDE, full_height)
        or tile_width * tile_height > max(TILE_SIDE**2, full_width * full_height)
    ):
        raise _damaged(
            f"it has {width} x {height} pixels and tiles of {tile_width} x {tile_height}"
        )
    return True, tile_width, tile_height


def _check_parts(
    offsets: list[int], sizes: list[int], number: int, spans: list[tuple[int, int]], data: bytes
) -> None:
    """Raises UndecodableImageError if there are other than `number` strips or tiles, or if they
    lie outside the file, in each other or in `spans`."""
    if number > MAX_PARTS:
        raise refuse(f"{number} strips or tiles")
    if not len(offsets) == len(sizes) == number:
        raise _damaged(
            f"it needs {number} strips or tiles and has {len(offsets)} offsets and {len(sizes)}"
            " sizes"
        )
    if min(sizes) == 0:
        raise _damaged("a strip or tile is empty")
    parts = [(at, at + size) for at, size in zip(offsets, sizes, strict=True)]
    if max(end for _, end in parts) > len(data):
        raise UndecodableImageError("the TIFF is cut off or damaged: a strip is not in the file")
    # Tags may share their values.
    taken = sorted([*parts, *_merge(spans)])
    if any(begin < end for (_, end), (begin, _) in itertools.pairwise(taken)):
        raise _damaged("its strips or tiles overlap, or lie in its header")


def _merge(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns spans (begin, end) as those that do not overlap."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
