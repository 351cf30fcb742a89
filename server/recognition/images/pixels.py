"""Pixels: decoded by OpenCV from checked bytes, reduced to 8 bits, turned upright."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError

# uint8, RGB [height, width, 3] unless stated otherwise.
Pixels = NDArray[np.uint8]

COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# The upper two bits of a frame are empty if all 8-bit levels are below this, as those of cameras
# with 10, 12 or 14 bits are; and those of any other camera if the frame is very dark.
EMPTY_BELOW = 64
# cv2.flip's code for each EXIF orientation, after those from 5 on were transposed.
FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def decode_by_opencv(
    data: bytes | bytearray, name: str, *, bits: int = 8, significant_bits: int = 0
) -> Pixels:
    """Decode an image file's bytes to RGB pixels, uint8 [height, width, 3], as stored: no
    orientation is applied.

    name: the format, for the message. bits: of a sample; those of 16 are reduced to the upper 8 of
    their lowest `significant_bits` (0: of all 16). Raises UndecodableImageError if OpenCV gives no
    picture. Damage that OpenCV only logs is not noticed here.
    """
    deep = bits == 16 and significant_bits not in (0, 16)
    try:
        pixels = cv2.imdecode(
            np.frombuffer(data, np.uint8), COLOR | cv2.IMREAD_ANYDEPTH if deep else COLOR
        )
    except cv2.error as error:
        raise UndecodableImageError(f"the {name} does not decode: {error.err}") from None
    # Whatever the flags say, OpenCV gives pixels of some kinds as they are stored.
    if pixels is None or pixels.ndim != 3:
        raise UndecodableImageError(
            f"the {name} does not decode: it is cut off or damaged, or its pixels are of a kind"
            " that is not read"
        )
    return to_8_bits(pixels, significant_bits) if deep else np.asarray(pixels, np.uint8)


def to_8_bits(samples: NDArray[Any], significant_bits: int = 0) -> Pixels:
    """Reduce uint16 samples of any shape to uint8: the upper 8 of their lowest `significant_bits`
    (9..16; 0 for all 16).

    Raises UndecodableImageError for a sample that has more bits.
    """
    bits = significant_bits or 16
    largest = int(samples.max())
    if largest >> bits:
        raise UndecodableImageError(
            f"the image has a sample of {largest}, and the setting significant_bits says that none"
            f" is above {(1 << bits) - 1}"
        )
    reduced: Pixels = np.empty(samples.shape, np.uint8)
    np.right_shift(samples, bits - 8, out=reduced, casting="unsafe")
    return reduced


def upper_bits_empty(pixels: Pixels) -> bool:
    """Return whether uint8 `pixels`, the upper bits of 16-bit samples, never use the upper two."""
    return int(pixels.max()) < EMPTY_BELOW


def to_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply the EXIF orientation (Exif 2.3, tag 0x0112): 1 as is ... 8 rotated."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = cv2.transpose(pixels)  # type: ignore[assignment]
    if orientation in FLIPS:
        pixels = cv2.flip(pixels, FLIPS[orientation])  # type: ignore[assignment]
    return pixels
