"""Decoding by OpenCV, for the formats whose bytes were checked before."""

import cv2
import numpy as np

from server.errors import UndecodableImageError
from server.recognition.images.header import Pixels


def decode(data: bytes, name: str) -> Pixels:
    """A file's bytes as RGB pixels, uint8 [height, width, 3], as stored: no orientation is applied.

    name: the format, for the message. 16-bit samples are reduced to their upper 8 bits.

    Raises UndecodableImageError if OpenCV gives no picture. What it only logs is not noticed here.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UndecodableImageError(f"the {name} does not decode: {error.err}") from None
    # Whatever the flags say, OpenCV gives pixels of some kinds as they are stored.
    if pixels is None or pixels.ndim != 3:
        raise UndecodableImageError(
            f"the {name} does not decode: it is cut off or damaged, or its pixels are of a kind"
            " that is not read"
        )
    return np.asarray(pixels, np.uint8)
