"""The reader of PNG: every packing and depth right, no damage answered."""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from fuzz.fuzz_images import compare
from fuzz.image_kinds import HEIGHT, KINDS, WIDTH, chunk, encode, interlaced, picture
from image_reading import EXACT, LIMITS, PICTURE, read
from numpy.typing import NDArray
from PIL import Image
from server_process import SHARED

from server.errors import UndecodableImageError
from server.recognition.frame import Limits, decode_frame

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
