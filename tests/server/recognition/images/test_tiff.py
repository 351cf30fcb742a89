"""images.tiff: every kind, layout and compression exactly; every visible damage refused."""

import io
import random
import struct
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from fuzz import tiff_files as tiffs
from fuzz.tiff_files import (
    BLACK_IS_ZERO,
    CMYK,
    LONG,
    PALETTE,
    RGB,
    SHORT,
    WHITE_IS_ZERO,
    Tags,
    Tiff,
)
from images import encode, picture
from numpy.typing import NDArray
from PIL import Image

from server.errors import ImageTooLargeError, LinesideError, UndecodableImageError
from server.recognition.frame import Limits, decode, decode_frame
from server.recognition.images.header import EXIF_ORIENTATION
from server.recognition.images.tiff import compression as tiff_compression
from server.recognition.images.tiff.ccitt import decode_group4
from server.recognition.manifest import Recipe

EXACT = Recipe(width=32, height=32, decode="exact")
LIMITS = Limits()
WIDTH, HEIGHT = 37, 34

LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {},
    "one-strip": {"rows": 1000},
    "rows": {"rows": 1},
    "tiles": {"tile": (16, 32)},
    "large-tile": {"tile": (64, 64)},
    "planes": {"planar": True},
    "planes-of-tiles": {"planar": True, "tile": (32, 16)},
    "big-endian": {"order": ">"},
    "big": {"big": True},
    "big-big-endian": {"big": True, "order": ">"},
}
# name: bits, photometric, channels.
KINDS = {
    **{f"grey-{bits}": (bits, BLACK_IS_ZERO, 1) for bits in (1, 2, 4, 8, 10, 12, 14, 16)},
    **{f"inverted-{bits}": (bits, WHITE_IS_ZERO, 1) for bits in (1, 2, 4, 8, 12, 16)},
    **{f"rgb-{bits}": (bits, RGB, 3) for bits in (1, 4, 8, 12, 16)},
    **{f"palette-{bits}": (bits, PALETTE, 1) for bits in (1, 2, 4, 8)},
    **{f"cmyk-{bits}": (bits, CMYK, 4) for bits in (8, 16)},
    "grey-alpha": (8, BLACK_IS_ZERO, 2),
    "rgb-alpha": (8, RGB, 4),
    "rgb-16-alpha": (16, RGB, 4),
}


def samples_of(kind: str, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.int64]:
    """Samples of a picture that is smooth on its left and noise on its right."""
    bits, _, channels = KINDS[kind]
    smooth = picture(width, height, 3).astype(np.int64)
    smooth = np.dstack([smooth, smooth[::-1]])[..., :channels] * ((1 << bits) - 1) // 255
    noise = np.random.default_rng(1).integers(0, 1 << bits, smooth.shape)
    return np.where(np.arange(width)[:, None] < width // 2, smooth, noise)


def palette_of(bits: int) -> list[int]:
    return [int(value) for value in np.random.default_rng(2).integers(0, 1 << 16, 3 << bits)]


def tags_of(kind: str) -> Tags:
    bits, photometric, channels = KINDS[kind]
    if photometric == PALETTE:
        return {tiffs.COLOR_MAP: (SHORT, palette_of(bits))}
    return {tiffs.EXTRA_SAMPLES: (SHORT, [2])} if channels in (2, 4) and "alpha" in kind else {}


def file_of(kind: str, compression: str, **how: Any) -> Tiff:
    bits, photometric, _ = KINDS[kind]
    tags = tags_of(kind) | how.pop("tags", {})
    samples = how.pop("samples", None)
    samples = samples_of(kind) if samples is None else samples
    return tiffs.write(samples, bits, photometric, compression, tags=tags, **how)


def truth(kind: str) -> NDArray[np.uint8]:
    """The picture by arithmetic, in floating point."""
    bits, photometric, _ = KINDS[kind]
    samples = samples_of(kind)
    levels = (
        np.floor(samples / 256) if bits == 16 else np.floor(samples * 255 / (2**bits - 1) + 0.5)
    )
    if photometric == PALETTE:
        colors = np.array(palette_of(bits)).reshape(3, -1) // 256
        levels = np.stack([channel[samples[..., 0]] for channel in colors], axis=-1)
    elif photometric == CMYK:
        paper = 255 - levels
        levels = np.floor(paper[..., :3] * paper[..., 3:] / 255 + 0.5)
    elif photometric == WHITE_IS_ZERO:
        levels = 255 - levels
    channels = 3 if levels.shape[-1] >= 3 else 1
    return np.broadcast_to(levels[..., :channels], (HEIGHT, WIDTH, 3)).astype(np.uint8)


def read(data: bytes) -> NDArray[np.uint8]:
    return decode(data, EXACT, LIMITS)


def fits(kind: str, compression: str, how: dict[str, Any]) -> bool:
    """Whether the format allows this: group 4 has one bit, differences 8 or 16."""
    bits, photometric, channels = KINDS[kind]
    if compression == "group4":
        return bits == 1 and channels == 1 and photometric != PALETTE
    return not how.get("predictor") or (bits in (8, 16) and photometric != PALETTE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", tiffs.COMPRESSIONS)
def test_every_kind_is_read_exactly(compression: str, layout: str) -> None:
    for kind in KINDS:
        for predictor in (False, True) if compression in ("lzw", "deflate") else (False,):
            how = LAYOUTS[layout] | {"predictor": predictor}
            if fits(kind, compression, how):
                pixels = read(file_of(kind, compression, **how).data)
                assert (pixels == truth(kind)).all(), (kind, predictor)


MODES = ("1", "L", "RGB", "RGBA", "LA", "P", "CMYK")
PILLOW_KINDS = ("grey-1", "grey-2", "grey-4", "grey-8", "inverted-8", "rgb-8", "palette-8")


@pytest.mark.parametrize("kind", [*PILLOW_KINDS, "cmyk-8", "rgb-alpha"])
@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits"])
def test_pillow_reads_the_same(kind: str, compression: str) -> None:
    data = file_of(kind, compression).data
    image = Image.open(io.BytesIO(data))
    assert (read(data) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *product(MODES, ["tiff_lzw", "tiff_adobe_deflate", "packbits", None]),
        *(("1", "group4"), ("L", "jpeg"), ("RGB", "jpeg")),
    ],
)
def test_what_pillow_writes_is_read(mode: str, compression: str | None) -> None:
    data = encode(picture(300, 200), "TIFF", mode, compression=compression)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert (read(data) == want).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_picture(orientation: int) -> None:
    data = file_of("rgb-8", "lzw", tags={EXIF_ORIENTATION: (SHORT, [orientation])}).data
    stored = Image.fromarray(truth("rgb-8"))
    turns = [0, *(getattr(Image.Transpose, name) for name in TURNS)]
    turn = turns[orientation - 1]
    want = stored.transpose(turn) if orientation > 1 else stored
    assert (read(data) == np.asarray(want)).all()


TURNS = (
    *("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"),
    *("ROTATE_270", "TRANSVERSE", "ROTATE_90"),
)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 63, 64, 65, 1791, 1792, 2559, 2560, 2561, 5300])
def test_group4_of_every_run(width: int) -> None:
    random_ = np.random.default_rng(width)
    lengths = random_.integers(0, width + 1, (60, 2))
    rows = np.zeros((180, width), np.uint8)
    for row, (begin, length) in enumerate(lengths):
        rows[3 * row, begin : begin + length] = 1
        rows[3 * row + 1] = random_.integers(0, 2, width)
    packed = np.packbits(rows, axis=1)
    data = tiffs.group4(packed.tobytes(), width)
    assert (decode_group4(data, width, len(rows), 1 << 20) == packed).all()


def test_group4_of_too_many_changes_is_refused() -> None:
    rows = np.packbits(np.arange(64 * 64).reshape(64, 64) % 2, axis=1).tobytes()
    with pytest.raises(UndecodableImageError, match="changes of colour"):
        decode_group4(tiffs.group4(rows, 64), 64, 64, 1000)


@pytest.mark.parametrize("size", [*range(1, 300), 500, 770, 1800, 3838, 3839, 3840, 9000])
def test_lzw_of_every_length(size: int) -> None:
    noise = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    for data in (noise, bytes(size), noise[: size // 2] * 2):
        for narrow in (False, True):
            assert tiff_compression.decode_lzw(tiffs.lzw(data, narrow), size) == data


Damage = Callable[[Tiff], bytes]


def _zero(tiff: Tiff, begin: float) -> bytes:
    data = bytearray(tiff.data)
    for at, size in tiff.parts[int(len(tiff.parts) * begin) :]:
        data[at : at + size] = bytes(size)
    return bytes(data)


def _in_part(tiff: Tiff, begin: float, end: float, noise: bool) -> bytes:
    """Zeros or noise from `begin` to `end` of a strip in the middle."""
    data = bytearray(tiff.data)
    at, size = tiff.parts[len(tiff.parts) // 2]
    first, last = at + int(size * begin), at + max(int(size * begin) + 1, int(size * end))
    data[first:last] = random.Random(5).randbytes(last - first) if noise else bytes(last - first)
    return bytes(data)


PIXELS: dict[str, Damage] = {
    "all-strips-zero": lambda tiff: _zero(tiff, 0),
    "strips-from-60-percent-zero": lambda tiff: _zero(tiff, 0.6),
    "last-strip-zero": lambda tiff: _zero(tiff, 0.99),
    "strip-tail-zero": lambda tiff: _in_part(tiff, 0.5, 1, False),
    "strip-head-zero": lambda tiff: _in_part(tiff, 0, 0.5, False),
    "strip-middle-zero": lambda tiff: _in_part(tiff, 0.3, 0.7, False),
    "strip-noise": lambda tiff: _in_part(tiff, 0.2, 0.8, True),
}
# Any byte is a pixel without compression, and most are in PackBits.
UNSEEN = {("none", damage) for damage in PIXELS} | {("packbits", "strip-noise")}


@pytest.mark.parametrize(
    ("compression", "damage"),
    [case for case in product(tiffs.COMPRESSIONS, PIXELS) if case not in UNSEEN],
)
def test_damaged_pixels_are_refused(compression: str, damage: str) -> None:
    for kind in ("grey-1", "grey-8", "grey-16", "rgb-8", "rgb-16", "palette-4", "rgb-12"):
        for layout in ("strips", "tiles", "planes", "big-endian"):
            if fits(kind, compression, {}):
                tiff = file_of(kind, compression, **LAYOUTS[layout])
                with pytest.raises(UndecodableImageError):
                    read(PIXELS[damage](tiff))


def _changed(tags: Tags) -> Callable[[str], bytes]:
    return lambda compression: file_of("grey-8", compression, tags=tags).data


def _with_sizes(change: int) -> Callable[[str], bytes]:
    def build(compression: str) -> bytes:
        sizes = [size for _, size in file_of("grey-8", compression).parts]
        sizes[1] = max(0, sizes[1] + change)
        tags: Tags = {tiffs.STRIP_SIZES: (LONG, sizes)}
        return file_of("grey-8", compression, tags=tags).data

    return build


def _with_offsets(change: Callable[[list[int]], list[int]]) -> Callable[[str], bytes]:
    def build(compression: str) -> bytes:
        offsets = change([at for at, _ in file_of("grey-8", compression).parts])
        tags: Tags = {tiffs.STRIP_OFFSETS: (LONG, offsets)}
        return file_of("grey-8", compression, tags=tags).data

    return build


@pytest.mark.parametrize("damage", PIXELS)
def test_damaged_jpeg_data_is_refused(damage: str) -> None:
    for mode in ("L", "RGB"):
        data = encode(picture(300, 200), "TIFF", mode, compression="jpeg", strip_size=1 << 13)
        image: Any = Image.open(io.BytesIO(data))
        tags = image.tag_v2
        places = zip(tags[tiffs.STRIP_OFFSETS], tags[tiffs.STRIP_SIZES], strict=True)
        tiff = Tiff(data, list(places))
        assert len(tiff.parts) > 3
        with pytest.raises(UndecodableImageError):
            read(PIXELS[damage](tiff))


STRUCTURE: dict[str, Callable[[str], bytes]] = {
    "size-too-small": _with_sizes(-5),
    "size-too-large": _with_sizes(5),
    "size-zero": _with_sizes(-10_000),
    "offset-outside": _with_offsets(lambda offsets: [*offsets[:-1], 1 << 30]),
    "offset-in-header": _with_offsets(lambda offsets: [0, *offsets[1:]]),
    "offset-twice": _with_offsets(lambda offsets: [*offsets[:2], offsets[1], *offsets[3:]]),
    "offset-missing": _with_offsets(lambda offsets: offsets[:-1]),
    "offset-too-many": _with_offsets(lambda offsets: [*offsets, 8]),
    "rows-fewer": _changed({tiffs.ROWS: (LONG, [8])}),
    "rows-none": _changed({tiffs.ROWS: (LONG, [0])}),
    "rows-all": _changed({tiffs.ROWS: (LONG, [0xFFFFFFFF])}),
    "height-more": _changed({tiffs.HEIGHT: (LONG, [HEIGHT + 1])}),
    "height-less": _changed({tiffs.HEIGHT: (LONG, [HEIGHT - 1])}),
    "width-more": _changed({tiffs.WIDTH: (LONG, [WIDTH + 1])}),
    "width-less": _changed({tiffs.WIDTH: (LONG, [WIDTH - 1])}),
    "width-none": _changed({tiffs.WIDTH: (LONG, [0])}),
    "bits-16": _changed({tiffs.BITS: (SHORT, [16])}),
    "bits-4": _changed({tiffs.BITS: (SHORT, [4])}),
    "tile-tags-too": _changed({tiffs.TILE_WIDTH: (LONG, [16])}),
    "text-in-place-of-number": _changed({tiffs.WIDTH: (2, [WIDTH])}),
}


@pytest.mark.parametrize("damage", STRUCTURE)
@pytest.mark.parametrize("compression", ["none", "lzw", "deflate", "packbits"])
def test_damaged_structure_is_refused(compression: str, damage: str) -> None:
    with pytest.raises(UndecodableImageError):
        read(STRUCTURE[damage](compression))


@pytest.mark.parametrize("layout", ["strips", "tiles", "big"])
@pytest.mark.parametrize("compression", tiffs.COMPRESSIONS)
def test_every_cut_is_refused(compression: str, layout: str) -> None:
    kind = "grey-1" if compression == "group4" else "grey-8"
    data = file_of(kind, compression, **LAYOUTS[layout]).data
    for cut in [*range(4, 40), *range(40, len(data) - 1, max(1, len(data) // 50)), len(data) - 1]:
        with pytest.raises(UndecodableImageError):
            read(data[:cut])


def grey_tags(*more: tuple[int, tuple[int, list[int]]]) -> list[tuple[int, tuple[int, list[int]]]]:
    """The tags of a grey picture of 4 x 2 pixels that stand at byte 8, and `more` behind them."""
    return [
        (tiffs.WIDTH, (LONG, [4])),
        (tiffs.HEIGHT, (LONG, [2])),
        (tiffs.BITS, (SHORT, [8])),
        (tiffs.COMPRESSION, (SHORT, [1])),
        (tiffs.PHOTOMETRIC, (SHORT, [1])),
        (tiffs.STRIP_OFFSETS, (LONG, [8])),
        (tiffs.STRIP_SIZES, (LONG, [8])),
        *more,
    ]


def chain(*directories: bytes) -> bytes:
    """A file of one picture whose directories follow each other at 16, 216, 416 ..."""
    begin = tiffs.header(16) + bytes(range(8))
    return begin + b"".join(each.ljust(200, b"\0") for each in directories)


NORMAL = tiffs.directory(grey_tags(), 16)


def subfile(at: int, value: int, after: int = 0, tag: int = 254) -> bytes:
    return tiffs.directory([(tag, (LONG, [value])), *grey_tags()], at, after=after)


def test_a_picture_with_thumbnail_and_mask_is_read() -> None:
    first = tiffs.directory(grey_tags(), 16, after=216)
    whole = chain(first, subfile(216, 1, after=416), subfile(416, 4, after=616))
    whole += tiffs.directory([(255, (SHORT, [2]))], 616)
    assert read(whole)[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (read(chain(subfile(16, 2))) == read(chain(NORMAL))).all()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (chain(tiffs.directory(grey_tags(), 16, after=216), NORMAL), "more than one picture"),
        (chain(tiffs.directory(grey_tags(), 16, after=216), subfile(216, 2)), "more than one"),
        (chain(subfile(16, 1, after=216), NORMAL), "a thumbnail or a mask"),
        (chain(subfile(16, 4)), "a thumbnail or a mask"),
        (chain(subfile(16, 2, tag=255)), "a thumbnail or a mask"),
        (chain(tiffs.directory(grey_tags(), 16, after=16)), "in a circle"),
        (
            chain(tiffs.directory(grey_tags(), 16, after=216), subfile(216, 1, after=216)),
            "in a circle",
        ),
        (chain(tiffs.directory(grey_tags(), 16, after=100_000)), "leads to byte 100000"),
        (chain(tiffs.directory(grey_tags((279, (LONG, [8]))), 16)), "tag 279 stands there twice"),
        (chain(tiffs.directory(grey_tags((258, (SHORT, [8]))), 16)), "tag 258 stands behind 279"),
        (chain(tiffs.directory(grey_tags()[1:], 16)), "tag 256 is missing"),
        (chain(tiffs.directory(grey_tags()[:-1], 16)), "1 offsets and 0 sizes"),
        (chain(tiffs.directory([], 16)), "it declares 0 tags"),
        (tiffs.header(0) + bytes(100), "it has no directory"),
        (tiffs.header(1000), "leads to byte 1000"),
    ],
)
def test_directories_are_read_strictly(data: bytes, sentence: str) -> None:
    with pytest.raises(UndecodableImageError, match=sentence):
        read(data)


KINDS_REFUSED: dict[str, tuple[str, Tags, str]] = {
    "signed": ("grey-8", {tiffs.SAMPLE_FORMAT: (SHORT, [2])}, "signed samples"),
    "signed-16": ("grey-16", {tiffs.SAMPLE_FORMAT: (SHORT, [2])}, "signed samples"),
    "float-16": ("grey-16", {tiffs.SAMPLE_FORMAT: (SHORT, [3])}, "floating-point samples"),
    "undefined": ("grey-8", {tiffs.SAMPLE_FORMAT: (SHORT, [4])}, "undefined samples"),
    "complex": ("grey-8", {tiffs.SAMPLE_FORMAT: (SHORT, [5])}, "complex samples"),
    "rgb-signed-blue": ("rgb-8", {tiffs.SAMPLE_FORMAT: (SHORT, [1, 1, 2])}, "3 samples a pixel"),
    "bits-32": ("grey-8", {tiffs.BITS: (SHORT, [32])}, "1 sample of 32 bits"),
    "bits-64": ("grey-8", {tiffs.BITS: (SHORT, [64])}, "1 sample of 64 bits"),
    "bits-7": ("grey-8", {tiffs.BITS: (SHORT, [7])}, "1 sample of 7 bits"),
    "bits-0": ("grey-8", {tiffs.BITS: (SHORT, [0])}, "1 sample of 0 bits"),
    "bits-mixed": ("rgb-8", {tiffs.BITS: (SHORT, [5, 6, 5])}, "3 samples a pixel"),
    "mask": ("grey-8", {tiffs.PHOTOMETRIC: (SHORT, [4])}, "a mask"),
    "ycbcr": ("rgb-8", {tiffs.PHOTOMETRIC: (SHORT, [6])}, "YCbCr without JPEG"),
    "lab": ("rgb-8", {tiffs.PHOTOMETRIC: (SHORT, [8])}, "CIELab"),
    "bayer": ("grey-8", {tiffs.PHOTOMETRIC: (SHORT, [32803])}, "a colour filter array"),
    "log-l": ("grey-16", {tiffs.PHOTOMETRIC: (SHORT, [32844])}, "LogL"),
    "rgb-of-one": ("grey-8", {tiffs.PHOTOMETRIC: (SHORT, [2])}, "pixels of 1 sample of"),
    "many-samples": ("grey-8", {tiffs.SAMPLES: (SHORT, [60_000])}, "60,000 samples"),
    "premultiplied": ("rgb-alpha", {tiffs.EXTRA_SAMPLES: (SHORT, [1])}, "multiplied by an alpha"),
    "inks": ("cmyk-8", {332: (SHORT, [2])}, "inks of its own"),
    "small-palette": ("palette-1", {tiffs.COLOR_MAP: (SHORT, [0, 255] * 3)}, "palette of 8 bits"),
    "palette-missing": ("grey-8", {tiffs.PHOTOMETRIC: (SHORT, [3])}, "palette has 0 numbers"),
    "float-predictor": ("grey-16", {tiffs.PREDICTOR: (SHORT, [3])}, "the predictor 3"),
    "predictor-of-bits": ("grey-4", {tiffs.PREDICTOR: (SHORT, [2])}, "the predictor 2"),
    "planar-3": ("grey-8", {tiffs.PLANAR: (SHORT, [3])}, "planar configuration is 3"),
    "fill-order": ("grey-8", {266: (SHORT, [2])}, "the fill order 2"),
    "orientation-9": ("grey-8", {EXIF_ORIENTATION: (SHORT, [9])}, "orientation is 9"),
    "volume": ("grey-8", {32997: (LONG, [2])}, "more than two dimensions"),
    "group3": ("grey-1", {tiffs.COMPRESSION: (SHORT, [3])}, "CCITT group 3"),
    "old-jpeg": ("grey-8", {tiffs.COMPRESSION: (SHORT, [6])}, "old JPEG"),
    "zstd": ("grey-8", {tiffs.COMPRESSION: (SHORT, [50000])}, "Zstandard"),
    "unknown": ("grey-8", {tiffs.COMPRESSION: (SHORT, [4711])}, "compression of number 4711"),
}


@pytest.mark.parametrize("name", KINDS_REFUSED)
def test_kinds_that_are_not_read_are_named(name: str) -> None:
    kind, tags, sentence = KINDS_REFUSED[name]
    with pytest.raises(UndecodableImageError, match=sentence):
        read(file_of(kind, "lzw", tags=tags).data)


def test_full_premultiplied_alpha_is_dropped() -> None:
    samples = samples_of("rgb-alpha")
    samples[..., 3] = 255
    tags: Tags = {tiffs.EXTRA_SAMPLES: (SHORT, [1])}
    pixels = read(file_of("rgb-alpha", "lzw", samples=samples, tags=tags).data)
    assert (pixels == samples[..., :3]).all()


@pytest.mark.parametrize(
    "tile", [(16, 16_777_216), (16_777_216, 16), (1 << 30, 1 << 30), (0, 16), (15, 16), (1024, 64)]
)
def test_tiles_out_of_proportion_are_refused(tile: tuple[int, int]) -> None:
    tags: Tags = {tiffs.TILE_WIDTH: (LONG, [tile[0]]), tiffs.TILE_HEIGHT: (LONG, [tile[1]])}
    data = file_of("rgb-8", "deflate", tile=(64, 64), tags=tags).data
    with pytest.raises(UndecodableImageError, match="tiles of"):
        read(data)


def test_a_picture_too_large_is_named_as_such() -> None:
    tags: Tags = {tiffs.WIDTH: (LONG, [100_000]), tiffs.HEIGHT: (LONG, [100_000])}
    data = file_of("grey-8", "none", rows=1 << 20, tags=tags).data
    with pytest.raises(ImageTooLargeError):
        read(data)


def test_a_last_strip_filled_up_is_read() -> None:
    """Some programs write rows below the picture."""
    samples = np.pad(samples_of("grey-8"), [(0, 40 - HEIGHT), (0, 0), (0, 0)])
    tags: Tags = {tiffs.HEIGHT: (LONG, [HEIGHT])}
    for compression in ("none", "lzw", "deflate", "packbits"):
        data = file_of("grey-8", compression, samples=samples, rows=10, tags=tags).data
        assert (read(data) == truth("grey-8")).all()


@pytest.mark.parametrize("compression", tiffs.COMPRESSIONS)
def test_mutations_never_give_a_picture_of_zeros(compression: str) -> None:
    """Random bytes anywhere in a file: an answer, if any, has the picture's own size or is refused
    with an error of ours."""
    kind = "grey-1" if compression == "group4" else "rgb-8"
    tiff, dice = file_of(kind, compression), random.Random(7)
    for _ in range(300):
        data = bytearray(tiff.data)
        for _ in range(dice.choice([1, 1, 2, 8])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            pixels = read(bytes(data))
        except LinesideError:
            continue
        assert pixels.dtype == np.uint8
        assert pixels.any()


def test_bigtiff_of_another_offset_size_is_refused() -> None:
    data = bytearray(file_of("grey-8", "lzw", big=True).data)
    struct.pack_into("<H", data, 4, 4)
    with pytest.raises(UndecodableImageError):
        read(bytes(data))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["grey-16", "rgb-16", "rgb-16-alpha", "inverted-16"])
def test_significant_bits_scale_and_are_checked(kind: str, order: str) -> None:
    samples = samples_of(kind) >> 4
    data = file_of(kind, "lzw", samples=samples, order=order).data
    pixels = decode(data, EXACT, Limits(significant_bits=12))
    levels = samples[..., :3] >> 4
    want = 255 - levels if kind.startswith("inverted") else levels
    assert (pixels == want).all()
    with pytest.raises(UndecodableImageError, match="significant_bits"):
        decode(data, EXACT, Limits(significant_bits=11))
    warnings = [warning.reason for warning in decode_frame(data, EXACT, LIMITS).warnings]
    # White is zero: with empty upper bits the picture is white, which may be right.
    assert warnings == ([] if kind.startswith("inverted") else ["upper_bits_empty"])
