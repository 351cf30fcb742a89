"""The readers of JPEG, PNG, BMP and WebP: every kind right, no damage answered."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import pytest
from fuzz.image_kinds import HEIGHT, KINDS, WIDTH, bmp, chunk, encode, interlaced, padded, picture
from fuzz_images import by_pillow, compare
from numpy.typing import NDArray
from PIL import Image
from server_process import SHARED

from server.errors import LinesideError, UndecodableImageError, UnsupportedImageError
from server.recognition import frame
from server.recognition.frame import Limits, Pixels, decode, decode_frame
from server.recognition.images.header import FORMATS
from server.recognition.manifest import Recipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.PngImagePlugin")

EXACT = Recipe(width=1, height=1, decode="exact")
LIMITS = Limits()
PICTURE = picture()
OURS = ("JPEG", "PNG", "BMP", "WEBP")
ALL = [(format_, kind) for format_ in OURS for kind in KINDS[format_]]
READ = [pair for pair in ALL if pair != ("WEBP", "animation")]


def read(data: bytes, limits: Limits = LIMITS) -> Pixels:
    return decode(data, EXACT, limits)


@pytest.mark.parametrize(("format_", "kind"), READ)
def test_every_kind_is_read_as_pillow_reads_it(format_: str, kind: str) -> None:
    data = KINDS[format_][kind]
    ours, theirs = read(data), by_pillow(data, format_)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= (2 if format_ == "JPEG" else 1)


def zeros(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + bytes(size) + data[start + size :]


def noise(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + random.Random(start).randbytes(size) + data[start + size :]


def repeat(data: bytes, start: int, size: int) -> bytes:
    return data[: start + size] + data[start:]


def swap(data: bytes, start: int, size: int) -> bytes:
    one, two = data[start : start + size], data[start + size : start + 2 * size]
    return data[:start] + two + one + data[start + 2 * size :]


def cut(data: bytes, start: int, size: int) -> bytes:
    return data[:start]


Damage = Callable[[bytes, int, int], bytes]


@pytest.mark.parametrize("damage", [zeros, noise, repeat, swap, cut])
@pytest.mark.parametrize(("format_", "kind"), ALL)
def test_damage_is_refused_or_seen_by_no_reader(format_: str, kind: str, damage: Damage) -> None:
    data = KINDS[format_][kind]
    for start in range(20, len(data) - 80, max(1, len(data) // 12)):
        damaged = damage(data, start, 40)
        assert compare(damaged, format_) is None
        if damaged != data and (format_ == "PNG" or damage is cut):
            with pytest.raises(LinesideError):
                read(damaged)


# JPEG


@pytest.mark.parametrize("kind", ["progressive", "progressive-444", "grey-progressive"])
def test_progressive_jpeg_without_any_scan(kind: str) -> None:
    """A file that lost scans but has its end mark: each scan once, and all from each one on."""
    data = KINDS["JPEG"][kind]
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    ends = [*starts[1:], len(data) - 2]
    assert len(starts) > 4
    for start, end in zip(starts, ends, strict=True):
        for damaged in (data[:start] + data[end:], data[:start] + b"\xff\xd9"):
            with pytest.raises(UndecodableImageError):
                read(damaged)
    # The same scan twice.
    with pytest.raises(UndecodableImageError):
        read(data[: ends[-1]] + data[starts[-1] : ends[-1]] + data[ends[-1] :])


def in_scans(parts: list[bytes]) -> bytes:
    """A sequential JPEG of three components, each in a scan of its own, of grey JPEGs."""
    first = parts[0]
    frame_at, scan_at = first.index(b"\xff\xc0"), first.index(b"\xff\xda")
    header = first[frame_at + 4 : frame_at + 9]
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    frame_header = b"\xff\xc0" + struct.pack(">H", 17) + header + b"\3" + components
    tables = first[:frame_at] + first[frame_at + 13 : scan_at]
    scans = b"".join(
        b"\xff\xda\0\x08\1%c\0\0\x3f\0" % number + part[part.index(b"\xff\xda") + 10 : -2]
        for number, part in enumerate(parts, 1)
    )
    return tables + frame_header + scans + b"\xff\xd9"


def test_sequential_jpeg_in_scans() -> None:
    channels = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2YCrCb)
    parts = [encode(Image.fromarray(channels[..., i]), "JPEG", quality=95) for i in (0, 2, 1)]
    data = in_scans(parts)
    assert np.abs(read(data).astype(int) - PICTURE).mean() < 4
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    without = data[: scans[1]] + data[scans[2] :]
    twice = data[:-2] + data[scans[1] : scans[2]] + data[-2:]
    for damaged in (without, twice, data[: scans[2]] + b"\xff\xd9"):
        with pytest.raises(UndecodableImageError):
            read(damaged)


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_jpeg_of_a_coding_that_no_camera_writes(marker: int) -> None:
    data = KINDS["JPEG"]["plain"].replace(b"\xff\xc0", bytes((0xFF, marker)))
    with pytest.raises(UndecodableImageError, match="baseline and progressive"):
        read(data)


def test_jpeg_of_two_frames() -> None:
    data = KINDS["JPEG"]["plain"]
    at = data.index(b"\xff\xc0")
    with pytest.raises(UndecodableImageError, match="twice"):
        read(data[:at] + data[at : at + 19] + data[at:])


def test_jpeg_work_is_bounded_by_scans_times_pixels() -> None:
    data = encode(Image.new("L", (7000, 7000)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(UndecodableImageError, match="goes over its pixels 22 times"):
        frame.read_header(data[:-2] + last * 40 + data[-2:], LIMITS)


@pytest.mark.parametrize("kind", ["plain", "progressive", "restarts", "cmyk"])
@pytest.mark.parametrize("number", [1, 2, 9, 50, 5000])
def test_zero_padding_of_a_jpeg(kind: str, number: int, capfd: pytest.CaptureFixture[str]) -> None:
    data = KINDS["JPEG"][kind]
    tables, scan = data.index(b"\xff\xdb"), data.index(b"\xff\xda")
    padding = bytes(number)
    padded_files = (
        data[:tables] + padding + data[tables:],
        data[:scan] + padding + data[scan:],
        data[:-2] + padding + data[-2:],
        data[:tables] + padding + data[tables:-2] + padding + data[-2:],
    )
    for file in padded_files:
        assert (read(file) == read(data)).all()
    # Zeros in place of what was there are no padding.
    with pytest.raises(UndecodableImageError):
        read(data[: len(data) // 2] + padding + b"\xff\xd9")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1, "quality": 95},
        {"restart_marker_rows": 1},
        {"quality": 20},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_zeros_inside_a_baseline_jpeg(how: dict[str, Any], mode: str, sample: bytes) -> None:
    image = Image.open(io.BytesIO(sample)).convert(mode)
    data = encode(image, "JPEG", **how)
    scan = data.index(b"\xff\xda") + 14
    for start in range(scan, len(data) - 300, (len(data) - scan) // 40):
        with pytest.raises(UndecodableImageError):
            read(zeros(data, start, 200))


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [1, 30, 75, 100])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_plain_pictures_are_not_zeros(optimize: bool, quality: int, mode: str) -> None:
    """Whose codes may be zeros for long: of one colour, in halves, in stripes."""
    plain = np.zeros((400, 600, 3), np.uint8)
    halves = plain.copy()
    halves[:, 300:] = 255
    stripes = plain.copy()
    stripes[::2] = 128
    for pixels in (plain, plain + 77, plain + 255, halves, stripes, halves.swapaxes(0, 1)):
        image = Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)
        exif = Image.Exif()
        exif[0x927C] = bytes(500)
        data = encode(image, "JPEG", quality=quality, optimize=optimize, exif=exif)
        assert read(data).shape[:2] == pixels.shape[:2]


# PNG


PNG = KINDS["PNG"]["rgb"]
HEAD = 33


def png_with(rows: bytes, *before: bytes, level: int = 6) -> bytes:
    return PNG[:HEAD] + b"".join(before) + chunk(b"IDAT", zlib.compress(rows, level)) + PNG[-12:]


ROWS = b"".join(b"\0" + row.tobytes() for row in PICTURE)
PACKED = zlib.compress(ROWS)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("row missing", png_with(ROWS[: -3 * WIDTH - 1])),
        ("byte missing", png_with(ROWS[:-1])),
        ("byte more", png_with(ROWS + b"\0")),
        ("row more", png_with(ROWS + bytes(3 * WIDTH + 1))),
        ("unknown filter", png_with(b"\5" + ROWS[1:])),
        ("last filter unknown", png_with(ROWS[: -3 * WIDTH - 1] + b"\x09" + bytes(3 * WIDTH))),
        ("no pixels", PNG[:HEAD] + PNG[-12:]),
        ("empty pixels", PNG[:HEAD] + chunk(b"IDAT") + PNG[-12:]),
        ("stream cut", PNG[:HEAD] + chunk(b"IDAT", PACKED[:-9]) + PNG[-12:]),
        ("sum cut", PNG[:HEAD] + chunk(b"IDAT", PACKED[:-4]) + PNG[-12:]),
        ("sum wrong", PNG[:HEAD] + chunk(b"IDAT", PACKED[:-4] + b"1234") + PNG[-12:]),
        ("no stream", PNG[:HEAD] + chunk(b"IDAT", b"no zlib") + PNG[-12:]),
        ("two places", png_with(ROWS)[:-12] + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT") + PNG[-12:]),
        ("two headers", png_with(ROWS, PNG[8:HEAD])),
        ("header later", PNG[:8] + chunk(b"tEXt", b"a\0b") + PNG[8:]),
        ("critical chunk", png_with(ROWS, chunk(b"CgBI", b"1234"))),
        ("no name", png_with(ROWS, chunk(b"a\xff1L", b"1234"))),
        ("palette of 4", png_with(ROWS, chunk(b"PLTE", bytes(4)))),
        ("two palettes", png_with(ROWS, chunk(b"PLTE", bytes(3)), chunk(b"PLTE", bytes(3)))),
        ("sum of a text", png_with(ROWS, chunk(b"tEXt", b"a\0b")[:-1] + b"!")),
        ("no end", PNG[:-12]),
        ("frame outside", png_with(ROWS, chunk(b"fcTL", struct.pack(">IIIII6x", 0, 99, 99, 0, 0)))),
        ("frame's number", png_with(ROWS)[:-12] + chunk(b"fdAT", b"\0\0\0\5abc") + PNG[-12:]),
    ],
)  # fmt: skip
def test_damaged_png_with_right_checksums(name: str, data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(data)


@pytest.mark.parametrize("level", [0, 1, 9])
def test_png_as_it_may_be_packed(level: int) -> None:
    assert (read(png_with(ROWS, level=level)) == PICTURE).all()


@pytest.mark.parametrize("size", [1, 2, 100, 70_000])
def test_png_in_chunks_of_any_size(size: int) -> None:
    chunks = [chunk(b"IDAT", PACKED[at : at + size]) for at in range(0, len(PACKED), size)]
    assert (read(PNG[:HEAD] + b"".join(chunks) + PNG[-12:]) == PICTURE).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (9, 1), (2, 3), (5, 5), (8, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_interlaced_png_of_few_pixels(width: int, height: int, dtype: type) -> None:
    pixels: NDArray[Any] = picture()[:height, :width].astype(dtype)
    pixels = pixels * 257 if dtype is np.uint16 else pixels
    assert (read(interlaced(pixels)) == picture()[:height, :width]).all()


def animation(*, control: bool, frame_first: bool, frames: int) -> bytes:
    """An animated PNG whose picture is the first frame, or none of them."""
    place = struct.pack(">IIII6x", WIDTH, HEIGHT, 0, 0)
    number, before, after = 0, b"", b""
    if control:
        before += chunk(b"acTL", struct.pack(">II", max(frames, 1), 0))
    if frame_first:
        before += chunk(b"fcTL", struct.pack(">I", number) + place)
        number += 1
    for _ in range(frames):
        after += chunk(b"fcTL", struct.pack(">I", number) + place)
        after += chunk(b"fdAT", struct.pack(">I", number + 1) + zlib.compress(bytes(len(ROWS))))
        number += 2
    return PNG[:HEAD] + before + chunk(b"IDAT", PACKED) + after + PNG[-12:]


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("frame_first", [False, True])
@pytest.mark.parametrize("frames", [0, 1, 3])
def test_picture_of_an_animated_png(control: bool, frame_first: bool, frames: int) -> None:
    """The frames are black: whatever the animation says, the picture is that of IDAT."""
    data = animation(control=control, frame_first=frame_first, frames=frames)
    assert (read(data) == PICTURE).all()
    for at in (HEAD + 10, data.index(b"IDAT") + 50, len(data) - 20):
        damaged = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        with pytest.raises(UndecodableImageError):
            read(damaged)


def test_png_that_killed_opencv_is_read_or_refused() -> None:
    path = SHARED / "cases" / "apng_kills_opencv.png"
    if not path.is_file():
        pytest.skip("../shared/cases is not on this machine")
    assert compare(path.read_bytes(), "PNG") is None


# Samples of 16 bits


def deep_png(samples: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", samples)[1].tobytes()


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
@pytest.mark.parametrize("gray", [False, True])
def test_significant_bits_of_16(bits: int, gray: bool) -> None:
    pixels = PICTURE[..., 1] if gray else PICTURE
    low = (pixels.astype(np.uint16) << (bits - 8)) + (1 << (bits - 8)) - 1
    data = deep_png(low if gray else low[..., ::-1])
    want = np.repeat(pixels[..., None], 3, axis=2) if gray else pixels
    limits = Limits(significant_bits=bits)
    assert (read(data, limits) == want).all()
    assert not decode_frame(data, EXACT, limits).warnings


def test_sample_above_the_significant_bits() -> None:
    samples = np.full((8, 8), 4096, np.uint16)
    with pytest.raises(UndecodableImageError, match=r"sample of 4096.*significant_bits.*4095"):
        read(deep_png(samples), Limits(significant_bits=12))


@pytest.mark.parametrize("most", [0, 1023, 4095, 16383, 16384, 65535])
def test_warning_of_empty_upper_bits(most: int) -> None:
    samples = np.zeros((8, 8), np.uint16)
    samples[3, 4] = most
    warnings = decode_frame(deep_png(samples), EXACT, LIMITS).warnings
    assert [each.reason for each in warnings] == (["upper_bits_empty"] if most < 16384 else [])


def test_dark_picture_of_8_bits_has_no_warning() -> None:
    data = encode(Image.new("RGB", (8, 8)), "PNG")
    assert decode_frame(data, EXACT, LIMITS).warnings == ()


# BMP


ROWS_24 = padded(PICTURE[..., ::-1])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut", bmp(ROWS_24[:-1], 24)),
        ("bytes behind", bmp(ROWS_24, 24) + b"more"),
        ("bytes behind that it knows", bmp(ROWS_24 + b"more", 24)),
        ("depth", bmp(ROWS_24, 23)),
        ("depth 64", bmp(ROWS_24 * 3, 64)),
        ("planes", bmp(ROWS_24, 24)[:26] + b"\2" + bmp(ROWS_24, 24)[27:]),
        ("no rows", bmp(ROWS_24, 24, height=0)),
        ("jpeg inside", bmp(ROWS_24, 24, compression=4)),
        ("png inside", bmp(ROWS_24, 24, compression=5)),
        ("header", bmp(ROWS_24, 24, size=48)),
        ("huffman", bmp(ROWS_24, 1, compression=3, size=64, palette=bytes(8))),
        ("no colour", bmp(bytes(HEIGHT * 64), 8, palette=b"")),
        ("colour beyond", bmp(b"\7" * HEIGHT * 64, 8, palette=bytes(7 * 4))),
        ("masks alike", bmp(ROWS_24 * 2, 32, compression=3, size=56, masks=(255, 255, 255))),
        ("mask of a bit", bmp(ROWS_24 * 2, 32, compression=3, size=56, masks=(1, 255, 65280))),
        ("no mask", bmp(ROWS_24 * 2, 16, compression=3, size=56, masks=(0, 0, 0))),
    ],
)  # fmt: skip
def test_damaged_bmp(name: str, data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(data)


# Each row a run of one colour.
RUNS = [bytes((WIDTH, row)) for row in range(HEIGHT)]
NEXT, LAST = b"\0\0", b"\0\1"
GREYS = b"".join(bytes((i, i, i, 0)) for i in range(256))


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("ends early", NEXT.join(RUNS[:-1]) + LAST),
        ("row empty", NEXT.join([*RUNS[:-1], b""]) + LAST),
        ("row short", NEXT.join([*RUNS[:-1], bytes((WIDTH - 1, 5))]) + LAST),
        ("row long", NEXT.join([*RUNS[:-1], bytes((WIDTH + 1, 5))]) + LAST),
        ("row more", NEXT.join([*RUNS, RUNS[0]]) + LAST),
        ("left out", b"\0\2\1\0" + NEXT.join([bytes((WIDTH - 1, 5)), *RUNS[1:]]) + LAST),
        ("no end", NEXT.join(RUNS)),
        ("no end of a row", b"".join(RUNS) + LAST),
        ("zeros", NEXT.join(RUNS[:20]) + bytes(200) + NEXT.join(RUNS[25:]) + LAST),
        ("literal cut", NEXT.join(RUNS[:-1]) + NEXT + bytes((0, WIDTH)) + bytes(9)),
        ("bytes behind", NEXT.join(RUNS) + LAST + b"more"),
    ],
)
def test_damaged_run_lengths(name: str, codes: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(bmp(codes, 8, compression=1, palette=GREYS))


@pytest.mark.parametrize("end", [LAST, NEXT + LAST])
def test_run_lengths_end_in_two_ways(end: bytes) -> None:
    pixels = read(bmp(NEXT.join(RUNS) + end, 8, compression=1, palette=GREYS))
    assert pixels[:, 0, 0].tolist() == list(range(HEIGHT))[::-1]


def test_bmp_with_a_profile_behind_its_pixels() -> None:
    assert (read(bmp(ROWS_24 + b"profile", 24, size=124)) == PICTURE).all()
    assert (read(bmp(ROWS_24, 24) + bytes(2)) == PICTURE).all()


@pytest.mark.parametrize("width", range(1, 12))
def test_bmp_rows_of_any_width(width: int) -> None:
    image = Image.fromarray(PICTURE[:, :width])
    for mode in ("RGB", "L", "1", "P"):
        data = encode(image.convert(mode), "BMP")
        assert (read(data) == by_pillow(data, "BMP")).all()


# WebP


def test_animated_webp_is_refused() -> None:
    with pytest.raises(UndecodableImageError, match="animation"):
        read(KINDS["WEBP"]["animation"])


def riff(*chunks: tuple[bytes, bytes], pad: bytes = b"\0") -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(data)) + data + pad * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    at, chunks = 12, []
    while at < len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        chunks.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return chunks


[LOSSY] = webp_chunks(KINDS["WEBP"]["lossy"])
EXTENDED = b"\x08\0\0\0" + (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
ODD = (b"ODD ", b"123")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("two pictures", riff(LOSSY, LOSSY)),
        ("other canvas", riff((b"VP8X", EXTENDED[:4] + bytes(6)), LOSSY)),
        ("no picture", riff((b"VP8X", EXTENDED))),
        ("header later", riff(LOSSY, (b"VP8X", EXTENDED))),
        ("short header", riff((b"VP8X", EXTENDED[:9]), LOSSY)),
        ("animation flag", riff((b"VP8X", b"\2" + EXTENDED[1:]), LOSSY)),
        ("frames", riff((b"VP8X", EXTENDED), (b"ANMF", bytes(16)), LOSSY)),
        ("filling byte", riff(LOSSY, ODD, pad=b"\1")),
        ("bytes behind", riff(LOSSY) + b"more"),
        ("size", riff(LOSSY)[:4] + b"\0\0\0\0" + riff(LOSSY)[8:]),
        ("chunk beyond", riff((b"VP8 ", LOSSY[1]))[:16] + b"\xff\xff\0\0" + LOSSY[1]),
        ("no key frame", riff((b"VP8 ", bytes((LOSSY[1][0] | 1,)) + LOSSY[1][1:]))),
        ("start code", riff((b"VP8 ", LOSSY[1][:3] + b"\0" + LOSSY[1][4:]))),
        ("cut inside", riff((b"VP8 ", LOSSY[1][:-10]))),
        ("more inside", riff((b"VP8 ", LOSSY[1] + bytes(10)))),
    ],
)  # fmt: skip
def test_damaged_webp(name: str, data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(data)


def test_webp_with_chunks_that_nobody_knows() -> None:
    data = riff((b"VP8X", EXTENDED), ODD, LOSSY, ODD)
    assert (read(data) == read(KINDS["WEBP"]["lossy"])).all()


@pytest.mark.parametrize("quality", [5, 50, 80, 100])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("side", [1, 17, 200])
def test_webp_of_any_encoding_is_whole(quality: int, lossless: bool, side: int) -> None:
    """None is taken for damaged, of plain pictures, of noise and of real ones."""
    noisy = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    for pixels in (noisy, noisy // 200 * 90, np.zeros_like(noisy), np.full_like(noisy, 90)):
        for method in (0, 4, 6):
            how = {"quality": quality, "lossless": lossless, "method": method}
            data = encode(Image.fromarray(pixels), "WEBP", **how)
            assert read(data).shape == (side, side, 3)


@pytest.mark.parametrize("damage", [zeros, noise, repeat, swap])
def test_damage_inside_a_lossy_webp_is_seen(damage: Damage, sample: bytes) -> None:
    """Of a camera's frame, by the end of its codes; one in fifty may end as it should."""
    data = encode(Image.open(io.BytesIO(sample)).convert("RGB"), "WEBP")
    answered = 0
    for start in range(60, len(data) - 450, len(data) // 50):
        with suppress(UndecodableImageError):
            read(damage(data, start, 200))
            answered += 1
    assert answered <= 1


# The formats that are taken


@pytest.mark.parametrize("format_", FORMATS)
def test_format_that_is_not_named_is_unsupported(format_: str) -> None:
    data = next(iter(KINDS[format_].values()))
    others = tuple(name for name in FORMATS if name != format_)
    with pytest.raises(UnsupportedImageError, match="image_formats"):
        read(data, Limits(formats=others))
    assert read(data, Limits(formats=(format_,))).shape[2] == 3


def test_native_readers_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    for format_, kind in ALL:
        data = KINDS[format_][kind]
        for _ in range(10):
            at = rng.randrange(len(data))
            try:
                read(zeros(data, at, 30))
            except LinesideError:
                continue
    assert capfd.readouterr() == ("", "")
