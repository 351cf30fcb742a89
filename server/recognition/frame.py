"""Bytes of an image file -> checked, decoded RGB pixels.

The header is read first, so that an image of too many pixels is refused before memory is taken
for it. JPEG goes through libjpeg-turbo (simplejpeg) in its strict mode, which tells a damaged
file from a good one; everything else goes through OpenCV.
"""

import io
import math
import re
from types import ModuleType

import cv2
import msgspec
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from server.errors import ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from server.recognition import headers
from server.recognition.headers import Header
from server.recognition.manifest import Recipe

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
# Pillow reads all of a JPEG's segments, and each byte of a PPM's comments, in Python.
BY_PILLOW = ("PNG", "BMP", "WEBP", "TIFF")
PLAIN = (b"P1", b"P2", b"P3")
# How files of the formats begin that Pillow does not name once they are cut off.
SIGNATURE = re.compile(rb"\x89PNG\r\n\x1a\n|RIFF.{4}WEBP|II[*+]\0|MM\0[*+]", re.DOTALL)
# libjpeg's warning for bytes that belong to nothing (jdmarker.c); the marker is that after them.
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


class Limits(msgspec.Struct, frozen=True):
    """max_pixels: width times height an image may have; max_side: pixels of its longer side."""

    max_pixels: int = 50_000_000
    max_side: int = 16_384


def read_header(data: bytes, limits: Limits) -> Header:
    """Format (one of FORMATS), size and orientation of an image file, without decoding it; of a
    JPEG with several pictures, those of the first. Pillow's own bound on sizes ends in a process
    that reads an image by it: `limits` are what counts.

    Raises UnsupportedImageError for what is not an image type we read, ImageTooLargeError for
    too many pixels, UndecodableImageError for a broken header.
    """
    if not data:
        raise UnsupportedImageError("the image is empty: 0 bytes")
    if data.startswith(headers.JPEG_SIGNATURE):
        header = headers.read_jpeg(data)
    elif headers.PNM_SIGNATURE.match(data):
        header = headers.read_pnm(data)
    else:
        header = _other_header(data)
    if header.width * header.height > limits.max_pixels or (
        max(header.width, header.height) > limits.max_side
    ):
        raise ImageTooLargeError(
            f"the image has {header.width} x {header.height} pixels; at most {limits.max_pixels}"
            f" and {limits.max_side} a side are taken"
        )
    return header


def _pillow() -> ModuleType:
    """Pillow, with the first image that needs it: most cameras send JPEG, and it would take a
    twentieth of the start. Its own bound would warn or raise before `Limits` are checked."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    return Image


def _other_header(data: bytes) -> Header:
    if data.startswith(headers.PNG_SIGNATURE):
        headers.check_png(data)
    elif data.startswith(headers.TIFF_SIGNATURES):
        headers.check_tiff(data)
    pillow = _pillow()
    try:
        image = pillow.open(io.BytesIO(data), formats=BY_PILLOW)
        # A TIFF's orientation is applied by OpenCV, whatever it is asked.
        exif = b"" if image.format == "TIFF" else image.info.get("exif", b"")
        return Header(
            image.format, image.mode, image.width, image.height, headers.orientation(exif)
        )
    except pillow.UnidentifiedImageError:
        if SIGNATURE.match(data):
            raise UndecodableImageError("the image's header is cut off or damaged") from None
        known = ", ".join(FORMATS)
        raise UnsupportedImageError(f"not an image this server reads ({known})") from None
    except (OSError, SyntaxError, ValueError, OverflowError, TypeError, KeyError) as error:
        raise UndecodableImageError(f"the image's header is damaged: {error}") from None


def scaled_size(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    """Size (width, height) that an upright image has after the resize, before crop or padding."""
    if recipe.resize == "stretch":
        return recipe.width, recipe.height
    pick = max if recipe.resize == "crop" else min
    ratio = pick(recipe.width / width, recipe.height / height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def jpeg_eighths(header: Header, recipe: Recipe) -> int:
    """Eighths (8, 4, 2 or 1) of its size at which a JPEG is decoded.

    The smallest for which neither side falls below what the resize needs, so that the model
    never sees a magnified image that the camera did not send.
    """
    if recipe.decode == "exact":
        return 8
    width, height = header.width, header.height
    if header.transposed:
        width, height = height, width
    need_width, need_height = scaled_size(width, height, recipe)
    for eighths in (1, 2, 4):
        if (
            math.ceil(width * eighths / 8) >= need_width
            and math.ceil(height * eighths / 8) >= need_height
        ):
            return eighths
    return 8


def _decode_other(data: bytes, header: Header) -> Pixels:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if header.white is not None:
        flags |= cv2.IMREAD_ANYDEPTH
    if header.format == "PPM" and data[:2] in PLAIN:
        data += b"\n"  # OpenCV wants something after the last number
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if header.white is not None and pixels is not None:
            pixels = cv2.convertScaleAbs(pixels, alpha=255 / header.white)
    except cv2.error as error:
        raise UndecodableImageError(f"the {header.format} does not decode: {error.err}") from None
    # Whatever the flags say, OpenCV gives pixels of some kinds as they are stored.
    if pixels is None or pixels.ndim != 3:
        raise UndecodableImageError(
            f"the {header.format} does not decode: it is cut off or damaged, or its pixels are of"
            " a kind that is not read"
        )
    return np.asarray(pixels, np.uint8)


def _only_padding(data: bytes, warning: str) -> bool:
    """Whether the bytes that libjpeg could not place are zeros before a marker, as some cameras
    write them, so that the pixels are whole. In a damaged file they are what was left of these."""
    found = EXTRANEOUS.search(warning)
    if found is None:
        return False
    return b"\0" * int(found[1]) + b"\xff" + bytes.fromhex(found[2]) in data


def _decode_jpeg(data: bytes, header: Header, eighths: int) -> Pixels:
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "CMYK" if header.mode == "CMYK" else "RGB",
            min_width=math.ceil(header.width * eighths / 8),
            min_height=math.ceil(header.height * eighths / 8),
        )
    except ValueError as error:
        if not _only_padding(data, str(error)):
            raise UndecodableImageError(f"the JPEG is damaged: {error}") from None
        return _decode_other(data, header)
    return _cmyk_to_rgb(pixels) if header.mode == "CMYK" else np.asarray(pixels, np.uint8)


def _cmyk_to_rgb(pixels: Pixels) -> Pixels:
    """Inks as Adobe stores them in JPEG, 255 for none, [h, w, 4] -> RGB: ink times black."""
    black = cv2.cvtColor(pixels[..., 3], cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.multiply(pixels[..., :3], black, scale=1 / 255), np.uint8)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Applies the EXIF orientation (Exif 2.3, tag 0x0112): 1 as is ... 8 rotated."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
    if orientation in flips:
        pixels = cv2.flip(pixels, flips[orientation])  # type: ignore[assignment]
    return pixels


def decode(data: bytes, recipe: Recipe, limits: Limits) -> Pixels:
    """An image file's bytes as upright RGB pixels, uint8 [height, width, 3].

    Grey is repeated over the three channels, alpha is dropped (a TIFF's is multiplied in, as
    libtiff does), 16-bit is reduced to its upper 8 bits, a PPM of any other depth is scaled to
    255, CMYK is converted, EXIF orientation is applied. A JPEG may come back smaller than it is
    stored, see `jpeg_eighths`.

    Raises UnsupportedImageError, ImageTooLargeError or UndecodableImageError.
    """
    header = read_header(data, limits)
    if header.format == "JPEG":
        pixels = _decode_jpeg(data, header, jpeg_eighths(header, recipe))
    else:
        pixels = _decode_other(data, header)
    return _upright(pixels, header.orientation)
