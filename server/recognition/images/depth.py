"""Samples of 16 bits -> 8 bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError
from server.recognition.images.header import Pixels

# The upper two bits of a frame are empty if no sample has more than this: as cameras of 10, 12 or
# 14 bits store them, unless the frame is very dark.
EMPTY_BELOW = 64


def to_8_bits(samples: NDArray[Any], significant_bits: int = 0) -> Pixels:
    """uint16 samples of any shape as uint8: the upper 8 of their lowest `significant_bits` (9..16;
    0 for all 16).

    Raises UndecodableImageError for a sample that has more bits.
    """
    bits = significant_bits or 16
    most = int(samples.max())
    if most >> bits:
        raise UndecodableImageError(
            f"the image has a sample of {most}, and the setting significant_bits says that none is"
            f" above {(1 << bits) - 1}"
        )
    reduced: Pixels = np.empty(samples.shape, np.uint8)
    np.right_shift(samples, bits - 8, out=reduced, casting="unsafe")
    return reduced


def upper_bits_empty(pixels: Pixels) -> bool:
    """Whether uint8 `pixels`, the upper bits of 16-bit samples, leave the upper two bits unused."""
    return int(pixels.max()) < EMPTY_BELOW
