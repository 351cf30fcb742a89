"""frame.decode: every format and mode, orientation, scaled decoding, and what it refuses."""

import io
import math
import subprocess
import sys
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encode, files, huge_png, picture
from PIL import Image, ImageOps
from server_process import ROOT

from server.errors import (
    ImageTooLargeError,
    LinesideError,
    UndecodableImageError,
    UnsupportedImageError,
)
from server.recognition import frame
from server.recognition.frame import Limits, Pixels, decode, shown_part
from server.recognition.images.header import EXIF_ORIENTATION, Header
from server.recognition.manifest import Recipe

# As in a server, see server.recognition.process.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

EXACT = Recipe(width=32, height=32, decode="exact")
LIMITS = Limits()
PICTURE = picture()
FILES = files(PICTURE)
# Formats that carry a checksum or a code that damage breaks; in the others any pixel is as good.
CHECKED = ("jpeg", "jpeg-progressive", "jpeg-cmyk", "png")


def difference(one: Pixels, other: Pixels) -> float:
    """Mean difference in grey levels of two images of one size."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_picture_that_was_written(name: str) -> None:
    pixels = decode(FILES[name], EXACT, LIMITS)
    assert pixels.dtype == np.uint8
    assert difference(pixels, PICTURE) < 5


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG"])
def test_grey_is_repeated_over_the_channels(kind: str) -> None:
    grey = np.asarray(Image.fromarray(PICTURE).convert("L"))
    pixels = decode(encode(grey, kind), EXACT, LIMITS)
    assert difference(pixels, np.repeat(grey[..., None], 3, axis=2)) < 5


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped(kind: str) -> None:
    how: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    opaque = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 200, np.uint8)])
    assert difference(decode(encode(opaque, kind, **how), EXACT, LIMITS), PICTURE) < 1


def test_palette_png_gives_its_colours() -> None:
    image = Image.fromarray(PICTURE).convert("P", palette=Image.Palette.ADAPTIVE)
    out = io.BytesIO()
    image.save(out, "PNG")
    assert difference(decode(out.getvalue(), EXACT, LIMITS), np.asarray(image.convert("RGB"))) == 0


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_16_bit_is_reduced_to_its_upper_8(extension: str) -> None:
    deep = PICTURE.astype(np.uint16) * 256 + 37
    data = cv2.imencode(extension, deep[..., ::-1])[1].tobytes()
    assert difference(decode(data, EXACT, LIMITS), PICTURE) <= 1


def test_cmyk_agrees_with_pillow() -> None:
    data = FILES["jpeg-cmyk"]
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert difference(decode(data, EXACT, LIMITS), theirs) < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_agrees_with_pillow(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encode(PICTURE, kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert difference(decode(data, EXACT, LIMITS), np.asarray(upright)) < 1


def test_a_damaged_exif_block_leaves_the_image_as_stored() -> None:
    data = encode(PICTURE, "JPEG", exif=b"Exif\0\0" + bytes(range(40)))
    assert decode(data, EXACT, LIMITS).shape == PICTURE.shape


@given(
    width=st.integers(1, 6000),
    height=st.integers(1, 6000),
    recipe=st.builds(
        Recipe,
        width=st.integers(1, 640),
        height=st.integers(1, 640),
        resize=st.sampled_from(["stretch", "crop", "letterbox"]),
        region=st.sampled_from([None, (0.3, 0.0, 0.4, 0.1), (0.9, 0.9, 0.1, 0.1)]),
    ),
    orientation=st.integers(1, 8),
)
def test_scaled_decode_stays_above_the_resize_size(
    width: int, height: int, recipe: Recipe, orientation: int
) -> None:
    """Scaled decode never falls below what the resize needs."""
    header = Header("JPEG", "RGB", width, height, orientation)
    eighths = frame.jpeg_eighths(header, recipe)
    upright = (height, width) if header.transposed else (width, height)
    shown = shown_part(recipe, *upright)[2:]
    need = frame.scaled_size(*shown, recipe)
    have = shown_part(recipe, *(math.ceil(side * eighths / 8) for side in upright))[2:]
    assert eighths == 8 or all(np.array(have) >= need)


@settings(max_examples=40)
@given(width=st.integers(1, 400), height=st.integers(1, 400), side=st.integers(1, 128))
def test_a_decoded_jpeg_is_as_large_as_the_resize_needs(width: int, height: int, side: int) -> None:
    recipe = Recipe(width=side, height=side)
    pixels = decode(encode(picture(width, height)), recipe, LIMITS)
    assert pixels.shape[0] >= min(side, height)
    assert pixels.shape[1] >= min(side, width)
    assert pixels.shape[0] <= height
    assert pixels.shape[1] <= width


def test_a_large_jpeg_is_decoded_smaller_and_exact_is_not() -> None:
    data = encode(picture(1280, 720))
    recipe = Recipe(width=150, height=150)
    assert decode(data, recipe, LIMITS).shape == (180, 320, 3)
    exact = Recipe(width=150, height=150, decode="exact")
    assert decode(data, exact, LIMITS).shape == (720, 1280, 3)


def pnm(kind: int, white: int, samples: Pixels) -> bytes:
    """Samples 0..255, [h, w] or [h, w, 3], as a PNM whose largest value is `white`; plain for the
    kinds 2 and 3, without a newline at its end."""
    values = np.rint(samples.astype(float) * white / 255).astype(int)
    head = b"P%d %d %d\n# a comment\n%d\n" % (kind, samples.shape[1], samples.shape[0], white)
    if kind in (2, 3):
        return head + " ".join(map(str, values.ravel())).encode()
    return head + values.astype(">u2" if white > 255 else "u1").tobytes()


@pytest.mark.parametrize("white", [1, 15, 100, 254, 255, 256, 1023, 4095, 16383, 65534, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_a_pnm_is_scaled_by_its_largest_value(kind: int, white: int) -> None:
    samples = PICTURE if kind in (3, 6) else PICTURE[..., 1]
    want = samples if kind in (3, 6) else np.repeat(samples[..., None], 3, axis=2)
    step = max(1, 255 / white)
    pixels = decode(pnm(kind, white, samples), EXACT, LIMITS)
    assert np.abs(pixels.astype(int) - want).max() <= step


def test_bits_are_black_and_white() -> None:
    for data in (b"P1 3 1\n1 0 1", b"P1 3 1\n101\n", b"P4 3 1\n\xa0"):
        assert decode(data, EXACT, LIMITS)[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"P5 #" + b"x" * 100_000 + b"\n2 2 255\n1234",
        b"P5 " + b" " * 100_000 + b"2 2 255\n1234",
        b"P5 2 2 0\n1234",
        b"P5 2 2 65536\n12345678",
        b"P5 0 2 255\n",
        b"P5 2 2 99999999999\n1234",
        b"P5 2 -2 255\n1234",
    ],
)
def test_the_header_of_a_pnm(data: bytes) -> None:
    with pytest.raises(UndecodableImageError, match="the PPM's header"):
        decode(data, EXACT, LIMITS)


@pytest.mark.parametrize("kind", [b"Pf", b"PF"])
def test_float_pixels_are_unsupported(kind: bytes) -> None:
    data = kind + b"\n40 30\n-1.0\n" + np.full(40 * 30 * 3, 0.5, "<f4").tobytes()
    with pytest.raises(UnsupportedImageError):
        decode(data, EXACT, LIMITS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_anywhere_is_undecodable(name: str) -> None:
    data = FILES[name]
    # Pillow takes fewer bytes than these for the beginning of any file.
    first = {"bmp": 30, "ppm": 2}.get(name, 12)
    for cut in [*range(first, len(data), max(1, len(data) // 60)), len(data) - 1]:
        with pytest.raises(UndecodableImageError):
            decode(data[:cut], EXACT, LIMITS)


@pytest.mark.parametrize("name", CHECKED)
def test_a_file_damaged_in_the_middle_is_undecodable(name: str) -> None:
    data = bytearray(files(picture(320, 240))[name])
    middle = len(data) // 2
    data[middle : middle + 500] = b"\xff\x01" * 250
    with pytest.raises(UndecodableImageError):
        decode(bytes(data), EXACT, LIMITS)


@pytest.fixture(scope="module")
def several_pictures() -> bytes:
    """A JPEG with a smaller picture behind the first, as phones write it."""
    smaller = Image.fromarray(picture(32, 24, seed=1))
    data = encode(PICTURE, "MPO", save_all=True, append_images=[smaller], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    return data


def test_of_a_jpeg_with_several_pictures_the_first_is_seen(several_pictures: bytes) -> None:
    assert frame.read_header(several_pictures, LIMITS).format == "JPEG"
    assert difference(decode(several_pictures, EXACT, LIMITS), PICTURE) < 5
    assert decode(several_pictures, Recipe(width=8, height=6), LIMITS).shape == (6, 8, 3)


def test_jpeg_with_several_pictures_is_never_damaged(several_pictures: bytes) -> None:
    """A JPEG with several pictures is never answered damaged."""
    first = several_pictures.index(b"\xff\xd9")
    for cut in (first // 2, first - 1):
        with pytest.raises(UndecodableImageError):
            decode(several_pictures[:cut], EXACT, LIMITS)
    data = bytearray(several_pictures)
    data[first - 200 : first - 100] = b"\xff\x01" * 50
    with pytest.raises(UndecodableImageError):
        decode(bytes(data), EXACT, LIMITS)


def test_bytes_left_over_by_damaged_data_are_no_padding() -> None:
    data = FILES["jpeg"]
    with pytest.raises(UndecodableImageError):
        decode(data[:-2] + b"left over" + data[-2:], EXACT, LIMITS)


def test_zeros_between_segments_are_padding() -> None:
    data = FILES["jpeg"]
    tables = data.index(b"\xff\xdb")
    for padded in (
        data[:tables] + bytes(7) + data[tables:],
        data[:-2] + bytes(50) + data[-2:],
    ):
        assert difference(decode(padded, EXACT, LIMITS), PICTURE) < 5


@pytest.mark.parametrize(
    "data",
    [b"", b"a frame, said the text file\n" * 9, b"\0" * 1000, b"GIF89a" + bytes(200)],
    ids=["empty", "text", "zeros", "gif"],
)
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImageError):
        decode(data, EXACT, LIMITS)


def test_pillow_is_left_alone_until_an_image_needs_it() -> None:
    code = (
        "import sys; from server.recognition import frame;"
        " from server.system import process; process.configure_process();"
        " assert 'PIL' not in sys.modules; from PIL import Image; assert Image.MAX_IMAGE_PIXELS"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_too_many_pixels_are_refused_before_memory_is_taken() -> None:
    data = huge_png()
    assert len(data) < 60_000
    with pytest.raises(ImageTooLargeError):
        decode(data, EXACT, LIMITS)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match="20000 x 20000"):
            decode(data, EXACT, LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_the_longer_side_is_limited_too() -> None:
    data = encode(picture(300, 2), "PNG")
    assert decode(data, EXACT, Limits(max_side=300)).shape == (2, 300, 3)
    with pytest.raises(ImageTooLargeError):
        decode(data, EXACT, Limits(max_side=299))


@settings(max_examples=200)
@given(data=st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_our_errors(data: bytes) -> None:
    with pytest.raises(LinesideError):
        decode(data, EXACT, LIMITS)


@settings(max_examples=400)
@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=4,
    ),
    near_start=st.booleans(),
)
def test_mutated_files_decode_or_raise_our_errors(
    name: str, changes: list[tuple[float, bytes]], near_start: bool
) -> None:
    data = bytearray(FILES[name])
    for where, new in changes:
        at = int(where * min(200, len(data)) if near_start else where * len(data))
        data[at : at + len(new)] = new
    try:
        pixels = decode(bytes(data), EXACT, Limits(max_pixels=1_000_000))
    except LinesideError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
