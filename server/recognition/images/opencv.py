"""Decoding by OpenCV, for the formats whose bytes were checked before."""

import cv2
import numpy as np

from server.errors import UndecodableImageError
from server.recognition.images.depth import to_8_bits
from server.recognition.images.header import Pixels

COLOR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(
    data: bytes | bytearray, name: str, *, bits: int = 8, significant_bits: int = 0
) -> Pixels:
    """A file's bytes as RGB pixels, uint8 [height, width, 3], as stored: no orientation is applied.

    name: the format, for the message. bits: of a sample. Those of 16 are reduced to the upper 8
    of their lowest `significant_bits` (0: of all 16).

    Raises UndecodableImageError if OpenCV gives no picture. What it only logs is not noticed here.
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
