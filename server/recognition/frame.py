"""Bytes of an image file -> checked, decoded RGB pixels.

The header is read first, so that an image of too many pixels is refused before memory is taken
for it: at most MEMORY_FACTOR times the bytes of its pixels. Each format has its own module in
`images`.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import ModuleType

import msgspec

from server.errors import (
    ImageTooLargeError,
    LinesideError,
    UndecodableImageError,
    UnsupportedImageError,
)
from server.recognition.images import bmp, jpeg, png, pnm, webp
from server.recognition.images.header import Header, Limits
from server.recognition.images.pixels import Pixels, to_upright, upper_bits_empty
from server.recognition.images.tiff import decode as tiff
from server.recognition.images.views import views
from server.recognition.manifest import Recipe

FORMATS: dict[str, ModuleType] = {
    "JPEG": jpeg,
    "PNG": png,
    "BMP": bmp,
    "WEBP": webp,
    "TIFF": tiff,
    "PPM": pnm,
}
# Decoding takes at most so many times width * height * 3 bytes, and some MB.
MEMORY_FACTOR = 4


class ImageWarning(msgspec.Struct, frozen=True):
    """A possible fault of an image that was decoded: a stable reason for programs, a sentence for
    people."""

    reason: str
    message: str


class Frame(msgspec.Struct, frozen=True):
    """A decoded image: upright RGB pixels, uint8 [height, width, 3], width and height of the image
    as sent, upright, and its possible faults."""

    pixels: Pixels
    size: tuple[int, int]
    warnings: tuple[ImageWarning, ...] = ()


EMPTY_BITS = ImageWarning(
    "upper_bits_empty",
    "the image has 16 bits a sample and leaves the upper two or more empty, so that it is nearly"
    " black: if its camera has fewer bits, set significant_bits, to 12 for Mono12",
)
WARNINGS = (EMPTY_BITS,)


def _format(data: bytes) -> str | None:
    """Returns the format by the file's first bytes, None for any other."""
    if data.startswith(jpeg.SIGNATURE):
        return "JPEG"
    if data.startswith(png.SIGNATURE):
        return "PNG"
    if data.startswith(bmp.SIGNATURE):
        return "BMP"
    if webp.SIGNATURE.match(data):
        return "WEBP"
    if data.startswith(tiff.SIGNATURES):
        return "TIFF"
    if pnm.SIGNATURE.match(data):
        return "PPM"
    return None


def read_header(data: bytes, limits: Limits) -> Header:
    """Reads format, size and orientation of an image file without decoding it; of a JPEG with
    several pictures, those of the first.

    Raises UnsupportedImageError for a format that is not one of `limits`, ImageTooLargeError for
    too many pixels, UndecodableImageError for a broken header.
    """
    if not data:
        raise UnsupportedImageError("the image is empty: 0 bytes")
    format_ = _format(data)
    if format_ is None:
        raise UnsupportedImageError(f"not an image this server reads ({', '.join(limits.formats)})")
    if format_ not in limits.formats:
        raise UnsupportedImageError(
            f"the image is a {format_}, and the setting image_formats of this server names only"
            f" {', '.join(limits.formats)}"
        )
    header: Header = FORMATS[format_].read_header(data)
    if header.width * header.height > limits.max_pixels or (
        max(header.width, header.height) > limits.max_side
    ):
        raise ImageTooLargeError(
            f"the image has {header.width} x {header.height} pixels; at most {limits.max_pixels}"
            f" and {limits.max_side} a side are taken"
        )
    return header


def shown_part(recipe: Recipe, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns left, top, width and height in pixels of the part of an upright image that the model
    is shown, at least one pixel."""
    if recipe.region is None:
        return 0, 0, width, height
    x, y, across, down = recipe.region
    left, top = min(round(x * width), width - 1), min(round(y * height), height - 1)
    right, bottom = round((x + across) * width), round((y + down) * height)
    return left, top, max(1, min(right, width) - left), max(1, min(bottom, height) - top)


def scaled_size(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """Returns the size (width, height) of an upright image after the resize, before crop or
    padding."""
    if recipe.resize == "stretch":
        return recipe.width, recipe.height
    pick = max if recipe.resize == "crop" else min
    ratio = pick(recipe.width / width, recipe.height / height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def jpeg_eighths(header: Header, recipe: Recipe) -> int:
    """Returns the eighths (8, 4, 2 or 1) of its size at which a JPEG is decoded.

    The smallest for which neither side of a view falls below what the resize needs, so that the
    model never sees a magnified image that the camera did not send.
    """
    if recipe.decode == "exact":
        return 8
    width, height = header.width, header.height
    if header.transposed:
        width, height = height, width
    if not recipe.regions and recipe.tiles is None:
        return _eighths(width, height, recipe)
    return max(_eighths(width, height, view) for view in views(recipe))


def _eighths(width: int, height: int, view: Recipe) -> int:
    need_width, need_height = scaled_size(*shown_part(view, width, height)[2:], view)
    for eighths in (1, 2, 4):
        part = shown_part(view, math.ceil(width * eighths / 8), math.ceil(height * eighths / 8))
        if part[2] >= need_width and part[3] >= need_height:
            return eighths
    return 8


def _decode_other(data: bytes, header: Header, limits: Limits) -> Pixels:
    """Decodes any format but JPEG: all that enters their native readers passes here."""
    module = FORMATS[header.format]
    pixels: Pixels
    if header.bits == 16:
        pixels = module.decode(data, header, limits.significant_bits)
    else:
        pixels = module.decode(data, header)
    return pixels


# A context around the reading of an image file's bytes.
Guard = Callable[[bytes], AbstractContextManager[None]]


def decode(data: bytes, recipe: Recipe, limits: Limits, guard: Guard | None = None) -> Pixels:
    """Returns the pixels of `decode_frame`, without its warnings."""
    return decode_frame(data, recipe, limits, guard).pixels


def decode_frame(data: bytes, recipe: Recipe, limits: Limits, guard: Guard | None = None) -> Frame:
    """Decodes an image file's bytes to upright RGB pixels, uint8 [height, width, 3].

    Grey is repeated over the three channels, alpha is dropped, 16-bit samples are reduced to their
    upper 8 bits (of the lowest `limits.significant_bits`), samples of any other depth are scaled to
    255, CMYK is converted, EXIF orientation is applied. A JPEG may come back smaller than it is
    stored, see `jpeg_eighths`. It warns of 16-bit samples whose upper bits are empty.

    guard: makes a context around the readers. Raises UnsupportedImageError, ImageTooLargeError or
    UndecodableImageError, and what `guard` raises."""
    if guard is None:
        return _decode_frame(data, recipe, limits)
    with guard(data):
        return _decode_frame(data, recipe, limits)


def decode_every_way(data: bytes, limits: Limits) -> None:
    """Has an image file's bytes read as for every recipe: a JPEG at each of its sizes. Raises
    nothing for an image that is refused or damaged."""
    with suppress(LinesideError):
        header = read_header(data, limits)
        if header.format != "JPEG":
            to_upright(_decode_other(data, header, limits), header.orientation)
            return
        for eighths in (1, 2, 4, 8):
            with suppress(UndecodableImageError):
                to_upright(jpeg.decode(data, header, eighths), header.orientation)


def _decode_frame(data: bytes, recipe: Recipe, limits: Limits) -> Frame:
    header = read_header(data, limits)
    if header.format == "JPEG":
        pixels = jpeg.decode(data, header, jpeg_eighths(header, recipe))
    else:
        pixels = _decode_other(data, header, limits)
    if header.orientation != 1:
        pixels = to_upright(pixels, header.orientation)
    width, height = header.width, header.height
    size = (height, width) if header.transposed else (width, height)
    if header.bits == 16 and not limits.significant_bits and upper_bits_empty(pixels):
        return Frame(pixels, size, (EMPTY_BITS,))
    return Frame(pixels, size)
