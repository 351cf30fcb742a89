"""images.pnm: every kind and depth exactly; what programs read differently is refused."""

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import picture
from numpy.typing import NDArray
from PIL import Image

from server.errors import ImageTooLargeError, UndecodableImageError
from server.recognition.frame import Limits, decode, decode_frame
from server.recognition.manifest import Recipe

EXACT = Recipe(width=32, height=32, decode="exact")
LIMITS = Limits()
WHITES = (1, 2, 3, 15, 100, 254, 255, 256, 1023, 4095, 16383, 65534, 65535)


def raster(kind: int, samples: NDArray[np.int64], white: int) -> bytes:
    """The raster of [h, w] or [h, w, 3] samples, without anything after the last one."""
    if kind == 1:
        return b"\n".join("".join(map(str, row)).encode() for row in samples)
    if kind == 4:
        return np.packbits(samples.astype(np.uint8), axis=1).tobytes()
    if kind < 4:
        return " ".join(map(str, samples.ravel())).encode()
    return samples.astype(">u2" if white > 255 else "u1").tobytes()


def pnm(kind: int, samples: NDArray[np.int64], white: int = 255) -> bytes:
    height, width = samples.shape[:2]
    head = f"P{kind}\n# made for a test\n{width} {height}\n" + (f"{white}\n" * (kind not in (1, 4)))
    return head.encode() + raster(kind, samples, white)


def samples_of(kind: int, white: int, width: int = 13, height: int = 7) -> NDArray[np.int64]:
    """Random samples 0..white with both ends among them."""
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    values = np.random.default_rng(kind * white).integers(0, white + 1, shape)
    values.flat[:2] = 0, white
    return values


def read(data: bytes) -> NDArray[np.uint8]:
    return decode(data, EXACT, LIMITS)


@pytest.mark.parametrize("white", WHITES)
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_samples_are_scaled_exactly(kind: int, white: int) -> None:
    samples = samples_of(kind, white)
    exact = [[int(v) * 255 / white for v in row.ravel()] for row in samples]
    pixels = read(pnm(kind, samples, white))
    got = pixels if kind in (3, 6) else pixels[..., 0]
    assert np.abs(got.reshape(len(exact), -1) - np.array(exact)).max() <= 0.5


@pytest.mark.parametrize("width", [1, 7, 8, 9, 13, 16])
@pytest.mark.parametrize("kind", [1, 4])
def test_bits_agree_with_pillow(kind: int, width: int) -> None:
    data = pnm(kind, samples_of(kind, 1, width))
    want = Image.open(io.BytesIO(data)).convert("RGB")
    assert (read(data) == np.asarray(want)).all()


HEADERS = (
    (b"P5 2 2 255 ", True),
    (b"P5\n2\t2\v255\f", True),
    (b"P5\r2\r2\r255\n", True),
    (b"P5#a\n#b\r2 #c 9 9\n2 # d\n255\n", True),
    (b"P5 2 2#c\n255\n", False),
    (b"P5 2#0000\n2 255\n", False),
    (b"P5 2 2 255#c\n", False),
    (b"P5 2 2 255\r\n", False),
    (b"P5 2 2 #255\n", False),
    (b"P5 +2 2 255\n", False),
    (b"P5 0x2 2 255\n", False),
    (b"P5 2. 2 255\n", False),
    (b"P5 2 2 255", False),
    (b"P5 2\xa02 255\n", False),
)


@pytest.mark.parametrize(("head", "good"), HEADERS)
def test_header_is_read_one_way_or_refused(head: bytes, good: bool) -> None:
    raw = bytes((1, 2, 3, 4))
    if good:
        assert read(head + raw)[..., 0].tolist() == [[1, 2], [3, 4]]
    else:
        with pytest.raises(UndecodableImageError):
            read(head + raw)


@pytest.mark.parametrize("kind", range(1, 7))
def test_comment_behind_a_number_cannot_hide_a_size(kind: int) -> None:
    head = b"P%d 8#1000000\n1\n" % kind + b"255\n" * (kind not in (1, 4))
    with pytest.raises((UndecodableImageError, ImageTooLargeError)):
        read(head + bytes(1_000_000))


@pytest.mark.parametrize("kind", range(1, 7))
def test_size_is_limited_before_pixels_are_read(kind: int) -> None:
    head = b"P%d 9000 9000\n" % kind + b"255\n" * (kind not in (1, 4))
    with pytest.raises(ImageTooLargeError):
        read(head)


@pytest.mark.parametrize("white", [1, 200, 255, 300, 65535])
@pytest.mark.parametrize("kind", range(1, 7))
def test_every_cut_is_refused(kind: int, white: int) -> None:
    white = 1 if kind in (1, 4) else white
    data = pnm(kind, samples_of(kind, white, 5, 3), white)
    # A plain number that loses its last digits is another number, which only its count can't show.
    ends = re.search(rb"[0-9]*\Z", data) if kind in (2, 3) else None
    for cut in range(2, ends.start() if ends else len(data)):
        with pytest.raises(UndecodableImageError):
            read(data[:cut])


@pytest.mark.parametrize("kind", range(1, 7))
def test_more_than_one_picture_is_refused(kind: int) -> None:
    white = 1 if kind in (1, 4) else 255
    data = pnm(kind, samples_of(kind, white), white)
    with pytest.raises(UndecodableImageError):
        read(data + b"\n" + data)
    with pytest.raises(UndecodableImageError):
        read(data + b"\nmore")
    assert (read(data + b"\n") == read(data)).all()
    if kind > 3:
        with pytest.raises(UndecodableImageError):
            read(data + b"\0")


@pytest.mark.parametrize("white", [1, 100, 254, 256, 4095, 65534])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_samples_above_the_largest_are_refused(kind: int, white: int) -> None:
    samples = samples_of(kind, white)
    samples.flat[-1] = white + 1
    with pytest.raises(UndecodableImageError, match=f"a sample of {white + 1}"):
        read(pnm(kind, samples, white))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (b"1 2 3 4", True),
        (b"1\n# a comment 9\n2\t3 #\n 0004\n", True),
        (b"1 2 3", False),
        (b"1 2 3 4 5", False),
        (b"1 2 3 -4", False),
        (b"1 2 3 +4", False),
        (b"1 2 3 4.0", False),
        (b"1 2 3 1e1", False),
        (b"1 2 3 0x4", False),
        (b"1 2 3#c\n4", False),
        (b"1 2 3 \xb2", False),
        (b"1 2 3 4294967297", False),
        (b"1 2 3 4\0", False),
        (b"", False),
    ],
)
def test_plain_numbers_are_strict(text: bytes, good: bool) -> None:
    if good:
        assert read(b"P2 2 2 255\n" + text)[..., 0].tolist() == [[1, 2], [3, 4]]
    else:
        with pytest.raises(UndecodableImageError):
            read(b"P2 2 2 255\n" + text)


@pytest.mark.parametrize("text", [b"0 1 1 2", b"0 1 1", b"01101", b"0 1 1 x", b"0 1 1 -1"])
def test_plain_bits_are_strict(text: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        read(b"P1 2 2\n" + text)


@given(st.integers(1, 6), st.binary(max_size=60))
def test_arbitrary_bytes_are_answered_or_refused(kind: int, rest: bytes) -> None:
    try:
        pixels = read(b"P%d " % kind + rest)
    except (UndecodableImageError, ImageTooLargeError):
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def test_a_picture_that_pillow_wrote_is_the_same() -> None:
    for mode in ("1", "L", "RGB"):
        image = Image.fromarray(picture()).convert(mode)
        out = io.BytesIO()
        image.save(out, "PPM")
        assert (read(out.getvalue()) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_significant_bits_scale_and_are_checked(kind: int) -> None:
    samples = samples_of(kind, 4095)
    pixels = decode(pnm(kind, samples, 65535), EXACT, Limits(significant_bits=12))
    got = pixels if kind in (3, 6) else pixels[..., 0]
    assert (got == samples >> 4).all()
    with pytest.raises(UndecodableImageError, match="significant_bits"):
        decode(pnm(kind, samples, 65535), EXACT, Limits(significant_bits=11))
    warnings = decode_frame(pnm(kind, samples, 65535), EXACT, LIMITS).warnings
    assert [warning.reason for warning in warnings] == ["upper_bits_empty"]
    assert not decode_frame(pnm(kind, samples, 4095), EXACT, LIMITS).warnings


@pytest.mark.parametrize("comment", [b"", b"# 1\n"])
def test_plain_numbers_are_read_block_by_block(comment: bytes) -> None:
    samples = samples_of(3, 65535, 400, 300)
    data = pnm(3, samples, 65535) + b" " * 3_000_000 + comment
    assert (read(data) == np.floor(samples * 255 / 65535 + 0.5)).all()
    with pytest.raises(UndecodableImageError):
        read(data + b"1")
